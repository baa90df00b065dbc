//! What `--resume_from` takes, what it refuses in words, and what it leaves alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::demo::{Run, losses, train};
use crate::saved;

fn run() -> Run {
    let run = Run::new("fsdp", 1, 1).args(["--max_steps", "2", "--save_steps", "1"]);
    run.succeed();
    run
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn folder_of_step(run: &Run, step: u64) -> PathBuf {
    let all = saved::checkpoints(&run.dir());
    let found = all.iter().find(|entry| entry.global_step == step);
    run.dir().join(&found.unwrap().name)
}

/// Runs to the good end, and returns what was shown.
fn shown(run: &Run) -> String {
    let output = train(run).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn the_folder_of_a_run_or_of_a_checkpoint_is_as_good_as_a_name() {
    let whole = Run::new("fsdp", 1, 1).args(["--max_steps", "4"]);
    let expected = losses(&whole.succeed());
    let paths: [fn(&Run) -> PathBuf; 3] = [
        |run| run.dir(),
        |run| folder_of_step(run, 2),
        // Not the newest: the run goes on from this one all the same.
        |run| folder_of_step(run, 1),
    ];
    for path in paths {
        let run = run();
        let from = text(&path(&run));
        // The path says where the run is, whatever the storage path.
        let run = run.args(["--resume_from", &from, "--max_steps", "4"]);
        let run = run.args(["--storage_path", "/no/such/storage"]);
        let shown = shown(&run);
        assert_eq!(losses(&run.dir()), expected, "{from}: {shown}");
        assert_eq!(saved::steps(&run.dir()).last(), Some(&4));
    }
}

#[test]
fn the_name_of_a_run_is_a_whole_command() {
    let whole = Run::new("fsdp", 1, 1).args(["--max_steps", "4", "--learning_rate", "1e-3"]);
    let expected = losses(&whole.succeed());
    // Another seed would give other losses, and another save_steps other checkpoints.
    let flags = [
        "--max_steps",
        "2",
        "--save_steps",
        "1",
        "--learning_rate",
        "1e-3",
    ];
    let run = Run::new("fsdp", 1, 1).args(flags);
    run.succeed();
    let place = text(run.storage.path());
    let flags = [
        "--resume_from",
        "run",
        "--storage_path",
        &place,
        "--max_steps",
        "4",
    ];
    let run = run.only(flags);
    let seen = shown(&run);
    assert_eq!(losses(&run.dir()), expected, "bit for bit: {seen}");
    assert_eq!(saved::steps(&run.dir()), [1, 2, 3, 4]);
    for words in [
        "resumed   run: flags not given here are those of the run",
        "--learning_rate 0.001",
        "differs   --max_steps 4, was 2",
    ] {
        assert!(seen.contains(words), "{words}: {seen}");
    }
    // The other strategy, on another mesh: its own flags are as ever, and the mesh follows. The folder says where the run is.
    let from = text(&run.dir());
    let run = run.only([
        "--resume_from",
        &from,
        "--num_workers",
        "2",
        "--max_steps=6",
    ]);
    let run = run.for_deepspeed();
    let seen = shown(&run);
    for words in [
        "train_deepspeed, was train_fsdp; --dp_size 2, was 1; --max_steps 6, was 4; --num_workers 2, was 1",
        "ZeRO stage 1",
        "tp 1 x dp 2",
    ] {
        assert!(seen.contains(words), "{words}: {seen}");
    }
    assert_eq!(losses(&run.dir()).len(), 6);
    // What may not change is refused, whoever says it.
    let (code, seen) = run
        .only(["--resume_from", &from, "--seed=7", "--max_steps=8"])
        .fail();
    assert_eq!(code, Some(2), "{seen}");
    assert!(
        seen.contains("not the same run") && seen.contains("seed"),
        "{seen}"
    );
}

#[test]
fn a_checkpoint_that_is_named_is_continued_from_once() {
    let run = run();
    let first = text(&folder_of_step(&run, 1));
    let run = run.args([
        "--resume_from",
        &first,
        "--max_steps",
        "3",
        "--save_steps",
        "1",
    ]);
    let text = shown(&run);
    assert!(text.contains("step 1,"), "{text}");
    // Those of before are still there, and the newest is the new one.
    assert_eq!(saved::steps(&run.dir()), [1, 2, 2, 3]);
}

#[test]
fn what_the_user_has_put_beside_the_checkpoints_stays_and_is_not_continued_from() {
    let run = run();
    let newest = folder_of_step(&run, 2);
    let best = run.dir().join("checkpoint_best");
    fs::create_dir(&best).unwrap();
    for entry in fs::read_dir(&newest).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, best.join(path.file_name().unwrap())).unwrap();
    }
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names(&best);
    let run = run.args([
        "--resume_from",
        "run",
        "--max_steps",
        "4",
        "--num_to_keep",
        "1",
    ]);
    run.succeed();
    assert_eq!(names(&best), before);
    assert!(!newest.exists(), "of its own, one is kept");
    assert_eq!(saved::steps(&run.dir()), [4]);
    // It can be continued from, by its name.
    let run = run.args(["--resume_from", &text(&best), "--max_steps", "3"]);
    let shown = shown(&run);
    assert!(
        shown.contains("continuing from checkpoint_best: step 2"),
        "{shown}"
    );
    assert_eq!(names(&best), before);
}

#[test]
fn another_text_is_refused_in_words() {
    let storage = tempfile::tempdir().unwrap();
    let data = storage.path().join("a.txt");
    let line = "a line of text that is not very long\n";
    fs::write(&data, line.repeat(200)).unwrap();
    let flags = [
        "--dataset_name",
        &text(&data),
        "--dataset_percentage",
        "100",
    ];
    let run = Run::new("fsdp", 1, 1)
        .args(flags)
        .args(["--max_steps", "2"]);
    run.succeed();
    fs::write(&data, line.repeat(201)).unwrap();
    let run = run.args(["--resume_from", "run", "--max_steps", "4"]);
    let (code, shown) = run.fail();
    assert_eq!(code, Some(2), "{shown}");
    let words = format!(
        "data: the text of {} has changed since the checkpoint",
        text(&data)
    );
    assert!(
        shown.contains(&words) && shown.contains("is longer by"),
        "{shown}"
    );
    let other = storage.path().join("b.txt");
    fs::rename(&data, &other).unwrap();
    let (code, shown) = run.args(["--dataset_name", &text(&other)]).fail();
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("--dataset_name is"), "{shown}");
}

#[test]
fn a_refusal_leaves_no_folder_and_says_what_is_taken() {
    let run = Run::new("fsdp", 1, 1);
    for from in ["absent", "/no/such/run", ""] {
        let args = ["--resume_from", from];
        let storage = tempfile::tempdir().unwrap();
        let place = storage.path().join("runs");
        let run = Run::new("fsdp", 1, 1)
            .args(args)
            .args(["--storage_path", &text(&place)]);
        let (code, shown) = run.fail();
        assert_eq!(code, Some(2), "{shown}");
        for word in [
            "--resume_from",
            from,
            "the name of an experiment in --storage_path",
        ] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        assert!(!place.exists(), "{from}");
    }
    // Nor does a run that cannot begin, nor a storage path of its own.
    let place = text(&run.storage.path().join("new/er"));
    let run = run.args(["--model_name", "/no/such/model", "--storage_path", &place]);
    run.fail();
    assert!(!run.storage.path().join("new").exists());
}

#[test]
fn a_finished_run_says_so_and_how_to_go_on() {
    let run = run();
    let run = run.args(["--resume_from", "run"]);
    let text = shown(&run);
    let words = "the run is finished: step 2 is the end of --max_steps 2; a larger one goes on";
    assert!(text.contains(words), "{text}");
    assert_eq!(saved::steps(&run.dir()), [1, 2]);
}

/// What a run writes to in its folder may have become a link to something of the user's.
#[test]
fn nothing_is_written_through_a_link_in_the_folder_of_a_run() {
    let mut run = run().args(["--resume_from", "run"]);
    let place = tempfile::tempdir().unwrap();
    let mine = place.path().join("mine.txt");
    fs::write(&mine, "precious").unwrap();
    for (step, (file, is_refused)) in [
        ("metrics.jsonl", false),
        (".lock", true),
        ("logs/rank_0.log", true),
        ("logs/run.log", false),
        ("events.jsonl", false),
        ("run.json", false),
        ("run_config.json", false),
        ("checkpoint_manager_snapshot.json", false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = run.dir().join(file);
        let kept = path.with_extension("kept");
        fs::rename(&path, &kept).unwrap();
        std::os::unix::fs::symlink(&mine, &path).unwrap();
        run = run.args(["--max_steps", &(step + 3).to_string()]);
        let output = train(&run).stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(fs::read(&mine).unwrap(), b"precious", "{file}: {text}");
        println!("{file}: {:?}: {text}", output.status.code());
        if is_refused {
            assert_eq!(output.status.code(), Some(1), "{file}: {text}");
            assert!(
                text.contains(file) && text.contains("a link"),
                "{file}: {text}"
            );
        }
        fs::rename(kept, path).unwrap();
    }
}
