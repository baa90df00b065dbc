//! The experiment's folder: Ray's snapshot, retention, and what others have put there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tandem_checkpoint::store::{Fault, FaultStore, LocalStore};
use tandem_checkpoint::{
    CheckpointError, ModelFile, NewCheckpoint, Retention, RunDir, Score, ScoreOrder, Store,
};
use tempfile::TempDir;

use crate::sample::{Mesh, read_all, read_latest, save, save_and_register};

const MESH: Mesh = Mesh { tp: 1, dp: 2 };

fn retention(num_to_keep: Option<usize>, score: Option<(&str, ScoreOrder)>) -> Retention {
    Retention {
        num_to_keep,
        score: score.map(|(attribute, order)| Score {
            attribute: attribute.to_owned(),
            order,
        }),
    }
}

fn store_in(root: &TempDir) -> Arc<dyn Store> {
    Arc::new(LocalStore::new(root.path()))
}

fn snapshot(root: &Path) -> Value {
    let bytes = fs::read(root.join("checkpoint_manager_snapshot.json")).expect("a snapshot");
    serde_json::from_slice(&bytes).expect("JSON")
}

fn listed(snapshot: &Value) -> Vec<&str> {
    let results = snapshot["checkpoint_results"].as_array().expect("a list");
    results
        .iter()
        .map(|result| result["checkpoint_dir_name"].as_str().expect("a name"))
        .collect()
}

fn steps(run: &RunDir) -> Vec<u64> {
    run.checkpoints()
        .iter()
        .map(|entry| entry.global_step)
        .collect()
}

#[test]
fn the_snapshot_is_one_that_ray_reads() {
    let root = TempDir::new().unwrap();
    let mut run = RunDir::open(store_in(&root), Retention::default()).unwrap();
    let first = save_and_register(&mut run, 1, MESH).unwrap();
    let second = save_and_register(&mut run, 2, MESH).unwrap();
    assert!(first < second);
    let result =
        |name: &str, loss: f64| json!({"checkpoint_dir_name": name, "metrics": {"loss": loss}});
    assert_eq!(
        snapshot(root.path()),
        json!({
            "version": 0,
            "checkpoint_results": [result(&first, 10.0), result(&second, 5.0)],
            "checkpoint_report_indices": [0, 1],
            "latest_checkpoint_result": result(&second, 5.0),
            "pending_training_results": [],
            "pending_validation_specs": [],
            "current_report_index": 2,
            "validated_checkpoint_dir_names": [],
            "timed_out_validation_checkpoint_dir_names": [],
            "failed_validation_checkpoint_dir_names": [],
            "tandem_deleting": [],
        })
    );
}

/// Snapshots as Ray writes them since 2.51, 2.54, 2.55 and 2.56, each listing a checkpoint of ours and one of another program.
#[test]
fn a_run_that_ray_began_goes_on() {
    for ray in [51, 54, 55, 56] {
        let root = TempDir::new().unwrap();
        let store = store_in(&root);
        save(
            store.as_ref(),
            &NewCheckpoint::in_folder("checkpoint_b"),
            7,
            MESH,
        )
        .unwrap();
        fs::create_dir(root.path().join("checkpoint_a")).unwrap();
        fs::write(root.path().join("checkpoint_a/weights.pt"), "torch").unwrap();
        let result = |name: &str| json!({"version": 0, "checkpoint_dir_name": name, "metrics": {"loss": 1.0, "extra": [1]}});
        let results = json!([result("checkpoint_a"), result("checkpoint_b")]);
        let mut state = json!({
            "checkpoint_results": results,
            "latest_checkpoint_result": result("checkpoint_b"),
        });
        if ray == 51 {
            state["version"] = json!(0);
        }
        if ray >= 54 {
            state["ray_version"] = json!(format!("2.{ray}.0"));
            state["checkpoint_report_indices"] = json!([3, 5]);
            state["current_report_index"] = json!(9);
            state["pending_training_results"] = json!([result("checkpoint_a")]);
            state["pending_validation_specs"] = json!([{"fn_kwargs": {}, "timeout_s": null}]);
        }
        if ray >= 55 {
            state["validated_checkpoint_dir_names"] = json!(["checkpoint_b"]);
        }
        if ray >= 56 {
            state["timed_out_validation_checkpoint_dir_names"] = json!([]);
            state["failed_validation_checkpoint_dir_names"] = json!(["checkpoint_gone"]);
        }
        let file = root.path().join("checkpoint_manager_snapshot.json");
        fs::write(&file, state.to_string()).unwrap();

        let mut run = RunDir::open(store, retention(Some(1), None)).unwrap();
        assert_eq!(steps(&run), [7], "Ray 2.{ray}");
        assert!(run.clean().unwrap().is_empty());
        let cleaned = snapshot(root.path());
        assert_eq!(listed(&cleaned), ["checkpoint_a", "checkpoint_b"]);
        // What a newer Ray demands is there from now on.
        assert!(cleaned["failed_validation_checkpoint_dir_names"].is_array());
        let new = save_and_register(&mut run, 8, MESH).unwrap();
        let after = snapshot(root.path());
        // What another program wrote is not ours to delete.
        assert_eq!(listed(&after), ["checkpoint_a", &new], "Ray 2.{ray}");
        assert!(root.path().join("checkpoint_a/weights.pt").exists());
        assert!(!root.path().join("checkpoint_b").exists());
        assert_eq!(
            after["latest_checkpoint_result"]["checkpoint_dir_name"],
            json!(new)
        );
        if ray >= 54 {
            assert_eq!(after["checkpoint_report_indices"], json!([3, 9]));
            assert_eq!(after["current_report_index"], json!(10));
            assert_eq!(after["ray_version"], json!(format!("2.{ray}.0")));
            assert_eq!(
                after["pending_validation_specs"][0],
                json!({"fn_kwargs": {}, "timeout_s": null})
            );
            assert_eq!(after["validated_checkpoint_dir_names"], json!([]));
            assert_eq!(after["failed_validation_checkpoint_dir_names"], json!([]));
        } else {
            assert_eq!(after["checkpoint_report_indices"], json!([0, 2]));
        }
    }
}

#[test]
fn retention_keeps_the_best_and_always_the_latest() {
    // Losses are 10, 5, 3.3, 2.5, ...: later saves have smaller ones.
    for (keep, score, expected) in [
        (None, None, vec![1, 2, 3, 4, 5]),
        (Some(2), None, vec![4, 5]),
        (Some(2), Some(("loss", ScoreOrder::Min)), vec![4, 5]),
        (Some(2), Some(("loss", ScoreOrder::Max)), vec![1, 2, 5]),
        (Some(1), Some(("loss", ScoreOrder::Max)), vec![1, 5]),
        (Some(2), Some(("absent", ScoreOrder::Min)), vec![4, 5]),
        (Some(9), None, vec![1, 2, 3, 4, 5]),
    ] {
        let root = TempDir::new().unwrap();
        let mut run = RunDir::open(store_in(&root), retention(keep, score)).unwrap();
        for number in 1..=5 {
            save_and_register(&mut run, number, MESH).unwrap();
        }
        assert_eq!(steps(&run), expected, "keep {keep:?} by {score:?}");
        let again = RunDir::open(store_in(&root), retention(keep, score)).unwrap();
        assert_eq!(again.checkpoints(), run.checkpoints());
        for entry in again.checkpoints() {
            assert_eq!(
                read_all(&again.reader(&entry.name).unwrap(), MESH).unwrap(),
                entry.global_step
            );
        }
        let snapshot = snapshot(root.path());
        let names: BTreeSet<&str> = listed(&snapshot).into_iter().collect();
        let folders: BTreeSet<&str> = run.checkpoints().iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, folders);
    }
    let root = TempDir::new().unwrap();
    let error = RunDir::open(store_in(&root), retention(Some(0), None)).unwrap_err();
    assert!(matches!(error, CheckpointError::NothingToKeep));
}

#[test]
fn names_ascend_even_when_the_clock_goes_back() {
    let root = TempDir::new().unwrap();
    let store = store_in(&root);
    let future = NewCheckpoint {
        folder: "checkpoint_2100-01-01_00-00-00.000000".into(),
        created_unix_us: 4_102_444_800_000_000,
    };
    save(store.as_ref(), &future, 1, MESH).unwrap();
    let mut run = RunDir::open(store, Retention::default()).unwrap();
    for number in 2..5 {
        let name = save_and_register(&mut run, number, MESH).unwrap();
        assert_eq!(
            name,
            format!("checkpoint_2100-01-01_00-00-00.00000{}", number - 1)
        );
    }
    assert_eq!(steps(&run), [1, 2, 3, 4]);
}

#[test]
fn a_commit_that_the_snapshot_missed_is_adopted_and_a_deletion_is_finished() {
    let root = TempDir::new().unwrap();
    let store = store_in(&root);
    let mut run = RunDir::open(store.clone(), retention(Some(1), None)).unwrap();
    let first = save_and_register(&mut run, 1, MESH).unwrap();
    let new = run.begin();
    save(store.as_ref(), &new, 2, MESH).unwrap();
    // The process dies here: the snapshot still lists the first only.
    let mut run = RunDir::open(store.clone(), retention(Some(1), None)).unwrap();
    assert_eq!(steps(&run), [1, 2]);
    run.clean().unwrap();
    assert_eq!(
        listed(&snapshot(root.path())),
        [first.as_str(), &new.folder]
    );

    // The next save should delete both, and cannot.
    let faulty = FaultStore::new(store.clone(), Fault::None);
    let mut run = RunDir::open(Arc::new(faulty.clone()), retention(Some(1), None)).unwrap();
    let third = run.begin();
    save(store.as_ref(), &third, 3, MESH).unwrap();
    faulty.set(Fault::None);
    let before_deleting = 1 + 1 + 1 + 1;
    faulty.set(Fault::Error {
        at: before_deleting + 1,
    });
    let registered = run.register(&third.folder).unwrap();
    assert!(faulty.has_struck());
    assert_eq!(registered.deleted.len() + registered.not_deleted.len(), 2);
    assert_eq!(registered.not_deleted.len(), 1, "{registered:?}");
    let undeleted = registered.not_deleted[0].0.clone();
    assert!(root.path().join(&undeleted).exists());
    assert_eq!(listed(&snapshot(root.path())), [third.folder.as_str()]);

    let mut run = RunDir::open(store.clone(), retention(Some(1), None)).unwrap();
    assert_eq!(steps(&run), [3], "what was to be deleted came back");
    assert!(run.clean().unwrap().contains(&undeleted));
    assert!(!root.path().join(&undeleted).exists());
    assert_eq!(read_latest(&store).unwrap(), Some(3));
}

#[test]
fn leftovers_go_and_what_is_not_ours_stays() {
    let root = TempDir::new().unwrap();
    let store = store_in(&root);
    let file = |path: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("creates");
        fs::write(path, "x").expect("writes");
    };
    let torn = [1, 2, 3, 4].map(|number| format!("checkpoint_2026-11-25_10-00-0{number}.000000"));
    file(&format!("{}/shard-00000.safetensors", torn[0]));
    file(&format!("{}/shard-00003.safetensors.partial", torn[1]));
    file(&format!("{}/manifest.json", torn[1]));
    file(&format!("{}/commit.json.partial", torn[2]));
    fs::create_dir(root.path().join(&torn[3])).unwrap();
    // A copy that was not finished is the user's, whatever is in it.
    file("checkpoint_best/shard-00000.safetensors");
    file("checkpoint_theirs/shard-00000.safetensors");
    file("checkpoint_theirs/readme.md");
    file("logs/rank0.log");
    file("checkpoint_notes.txt");
    let mut run = RunDir::open(store, Retention::default()).unwrap();
    assert!(run.latest().is_none());
    assert_eq!(run.torn(), torn);
    assert_eq!(run.clean().unwrap(), torn);
    let mut left: Vec<_> = fs::read_dir(root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let snapshot = "checkpoint_manager_snapshot.json";
    assert_eq!(
        left,
        [
            "checkpoint_best",
            snapshot,
            "checkpoint_notes.txt",
            "checkpoint_theirs",
            "logs"
        ]
    );
}

#[test]
fn a_damaged_snapshot_is_made_anew_and_a_damaged_commit_is_shown() {
    let root = TempDir::new().unwrap();
    let store = store_in(&root);
    let mut run = RunDir::open(store.clone(), Retention::default()).unwrap();
    let first = save_and_register(&mut run, 1, MESH).unwrap();
    let second = save_and_register(&mut run, 2, MESH).unwrap();
    fs::write(
        root.path().join("checkpoint_manager_snapshot.json"),
        "{\"chec",
    )
    .unwrap();
    let mut run = RunDir::open(store.clone(), Retention::default()).unwrap();
    assert_eq!(run.warnings().len(), 1);
    assert!(run.warnings()[0].contains("made anew"));
    run.clean().unwrap();
    assert_eq!(
        listed(&snapshot(root.path())),
        [first.as_str(), second.as_str()]
    );

    fs::write(root.path().join(&second).join("commit.json"), "{").unwrap();
    let run = RunDir::open(store, Retention::default()).unwrap();
    assert_eq!(run.checkpoints().len(), 2);
    let latest = run.latest().unwrap();
    assert_eq!(latest.name, second);
    assert!(
        latest
            .problem
            .as_ref()
            .unwrap()
            .contains("commit.json is damaged")
    );
    assert!(run.reader(&second).is_err());
    assert_eq!(read_all(&run.reader(&first).unwrap(), MESH).unwrap(), 1);
}

#[test]
fn a_folder_without_commit_is_not_registered_and_can_be_discarded() {
    let root = TempDir::new().unwrap();
    let mut run = RunDir::open(store_in(&root), Retention::default()).unwrap();
    let new = run.begin();
    fs::create_dir(root.path().join(&new.folder)).unwrap();
    let error = run.register(&new.folder).unwrap_err();
    assert!(
        matches!(error, CheckpointError::NotCommitted { .. }),
        "{error}"
    );
    run.discard(&new).unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn files_of_the_model_are_kept() {
    let root = TempDir::new().unwrap();
    let run = RunDir::open(store_in(&root), Retention::default()).unwrap();
    assert!(run.model_files().unwrap().is_empty());
    let file = |name: &str| ModelFile {
        name: name.into(),
        bytes: name.as_bytes().to_vec(),
    };
    for name in ["tokenizer.json", "config.json"] {
        run.put_model_file(&file(name)).unwrap();
    }
    assert_eq!(
        run.model_files().unwrap(),
        [file("config.json"), file("tokenizer.json")]
    );
    assert!(
        RunDir::open(store_in(&root), Retention::default())
            .unwrap()
            .torn()
            .is_empty()
    );
}

/// All files below `folder`, with what is in them.
fn content(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(content(&path));
        } else {
            files.push((path.clone(), fs::read(&path).expect("a file")));
        }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("creates");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copies");
    }
}

#[test]
fn a_snapshot_cannot_order_the_deletion_of_anything_but_a_checkpoint() {
    let outer = TempDir::new().unwrap();
    let root = outer.path().join("run");
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(&root));
    let mut run = RunDir::open(store.clone(), Retention::default()).unwrap();
    let first = save_and_register(&mut run, 1, MESH).unwrap();
    let second = save_and_register(&mut run, 2, MESH).unwrap();
    copy(&root.join(&second), &root.join("checkpoint_best"));
    copy(
        &root.join(&second),
        &outer.path().join("checkpoint_2026-01-01_00-00-00.000000"),
    );
    for folder in [
        "../victim",
        "model",
        "checkpoint_notes",
        "checkpoint_2026-01-01_00-00-00.000000",
    ] {
        fs::create_dir_all(root.join(folder)).unwrap();
        fs::write(root.join(folder).join("file"), "x").unwrap();
    }
    let victim = outer.path().join("victim");
    let mut state = snapshot(&root);
    let names = [
        "../victim",
        victim.to_str().unwrap(),
        "..",
        "",
        ".",
        "model",
        "checkpoint_best",
        "checkpoint_notes",
        "checkpoint_/../model",
        "checkpoint_2026-01-01_00-00-00.000000",
        &first,
    ];
    state["tandem_deleting"] = json!(names);
    let file = root.join("checkpoint_manager_snapshot.json");
    fs::write(&file, state.to_string()).unwrap();
    let before = content(outer.path());

    let mut run = RunDir::open(store, Retention::default()).unwrap();
    assert_eq!(
        steps(&run),
        [2],
        "what was being deleted is no checkpoint any more"
    );
    assert_eq!(run.clean().unwrap(), [first.as_str()]);
    let gone = |path: &Path| path.starts_with(root.join(&first)) || path == file;
    let kept: Vec<_> = before.into_iter().filter(|(path, _)| !gone(path)).collect();
    let mut after = content(outer.path());
    after.retain(|(path, _)| *path != file);
    assert_eq!(after, kept);
}

#[test]
fn what_a_user_has_put_beside_the_checkpoints_is_left_alone() {
    let outer = TempDir::new().unwrap();
    let root = outer.path().join("run");
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(&root));
    let mut run = RunDir::open(store.clone(), retention(Some(1), None)).unwrap();
    let first = save_and_register(&mut run, 1, MESH).unwrap();
    let elsewhere = outer.path().join(&first);
    copy(&root.join(&first), &elsewhere);
    let copies = [
        "checkpoint_best",
        "checkpoint_2026-11-25_10-00-00.000000",
        "checkpoint_2026-11-25_10-00-00.000000_copy",
    ];
    for name in copies {
        copy(&root.join(&first), &root.join(name));
    }
    // A checkpoint that was moved to another disk, and one of another run.
    let links = ["checkpoint_2027-01-01_00-00-00.000000", "checkpoint_link"];
    for name in links {
        std::os::unix::fs::symlink(&elsewhere, root.join(name)).unwrap();
    }
    let kept = content(&elsewhere);

    let mut run = RunDir::open(store.clone(), retention(Some(1), None)).unwrap();
    assert_eq!(run.latest().unwrap().name, first, "it goes on from its own");
    assert!(run.clean().unwrap().is_empty());
    fs::write(root.join(&first).join("notes.txt"), "mine").unwrap();
    save_and_register(&mut run, 2, MESH).unwrap();
    save_and_register(&mut run, 3, MESH).unwrap();
    assert_eq!(steps(&run), [3]);
    assert_eq!(content(&elsewhere), kept);
    for name in copies.into_iter().chain(links) {
        assert_eq!(content(&root.join(name)).len(), kept.len(), "{name}");
    }
    let notes = content(&root.join(&first));
    assert_eq!(
        notes,
        [(root.join(&first).join("notes.txt"), b"mine".to_vec())]
    );

    // An older checkpoint that nobody has listed was put there: another run's, or one from an archive.
    let foreign = RunDir::open(
        Arc::new(LocalStore::new(outer.path().join("other"))),
        Retention::default(),
    )
    .unwrap();
    let archived = foreign.begin();
    save(foreign.store().as_ref(), &archived, 9, MESH).unwrap();
    save_and_register(&mut run, 4, MESH).unwrap();
    let place = root.join(&archived.folder);
    copy(&outer.path().join("other").join(&archived.folder), &place);
    let mut run = RunDir::open(store.clone(), retention(Some(1), None)).unwrap();
    assert_eq!(steps(&run), [4]);
    save_and_register(&mut run, 5, MESH).unwrap();
    assert_eq!(content(&place).len(), kept.len());

    // A checkpoint of ours whose place a link has taken is not deleted through the link.
    let last = run.latest().unwrap().name.clone();
    fs::rename(root.join(&last), outer.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(outer.path().join("moved"), root.join(&last)).unwrap();
    let moved = content(&outer.path().join("moved"));
    save_and_register(&mut run, 6, MESH).unwrap();
    assert_eq!(content(&outer.path().join("moved")), moved);
}

#[test]
fn links_are_not_read_or_written_through() {
    let outer = TempDir::new().unwrap();
    let root = outer.path().join("run");
    let secret = outer.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::create_dir_all(root.join("model")).unwrap();
    let link = |name: &str| std::os::unix::fs::symlink(&secret, root.join(name)).unwrap();
    link("model/tokenizer.json");
    link("checkpoint_manager_snapshot.json.partial");
    let mut run = RunDir::open(Arc::new(LocalStore::new(&root)), Retention::default()).unwrap();
    save_and_register(&mut run, 1, MESH).unwrap();
    let error = run.model_files().unwrap_err().to_string();
    assert!(error.contains("model/tokenizer.json is a link"), "{error}");
    assert_eq!(fs::read(&secret).unwrap(), b"secret");

    fs::rename(root.join("model"), outer.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(outer.path().join("elsewhere"), root.join("model")).unwrap();
    let file = ModelFile {
        name: "config.json".into(),
        bytes: b"{}".to_vec(),
    };
    for error in [
        run.model_files().unwrap_err(),
        run.put_model_file(&file).unwrap_err(),
    ] {
        assert!(matches!(error, CheckpointError::Link { .. }), "{error}");
    }
    assert!(!outer.path().join("elsewhere/config.json").exists());
}
