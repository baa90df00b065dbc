//! The files of a run's folder from which it goes on.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use tandem_checkpoint::store::LocalStore;
use tandem_checkpoint::{
    Digest, Piece, Reader, Role, RunDir, Store, TensorSpec, TrainState, commit as commit_shards,
    write_shard,
};
use tandem_mesh::ShardSlice;

const TENSOR: &str = "model.norm.weight";
const SNAPSHOT: &str = "checkpoint_manager_snapshot.json";

/// A run with one checkpoint.
struct Run {
    checkpoint: String,
    /// The checkpoint's files.
    files: Vec<(String, Vec<u8>)>,
    snapshot: Vec<u8>,
}

/// Made once: it is the same for all.
fn run() -> &'static Run {
    static RUN: OnceLock<Run> = OnceLock::new();
    RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path()));
        let mut run = RunDir::open(store.clone(), Default::default()).unwrap();
        let new = run.begin();
        let piece = Piece {
            tensor: TENSOR,
            role: Role::Param,
            slice: ShardSlice::whole(&[2, 3]),
            data: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        };
        let report = write_shard(store.as_ref(), &new.folder, 0, &[piece]).unwrap();
        let spec = TensorSpec {
            name: TENSOR.to_owned(),
            shape: vec![2, 3],
            roles: vec![Role::Param],
        };
        let state = TrainState {
            global_step: 3,
            metrics: [("loss".to_owned(), json!(1.5))].into(),
            ..TrainState::default()
        };
        commit_shards(store.as_ref(), &new, &[spec], vec![report], state).unwrap();
        run.register(&new.folder).unwrap();
        let files = fs::read_dir(folder.path().join(&new.folder)).unwrap();
        let files = files.map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        });
        Run {
            files: files.collect(),
            snapshot: fs::read(folder.path().join(SNAPSHOT)).unwrap(),
            checkpoint: new.folder,
        }
    })
}

impl Run {
    fn file(&self, name: &str) -> &[u8] {
        &self
            .files
            .iter()
            .find(|(found, _)| found == name)
            .unwrap()
            .1
    }

    /// Its folder below `root`, with some files replaced.
    fn write(&self, root: &Path, replaced: &[(&str, &[u8])]) {
        let run = root.join("run");
        let folder = run.join(&self.checkpoint);
        fs::create_dir_all(&folder).unwrap();
        fs::write(run.join(SNAPSHOT), &self.snapshot).unwrap();
        for (name, bytes) in &self.files {
            fs::write(folder.join(name), bytes).unwrap();
        }
        for (name, bytes) in replaced {
            let place = if *name == SNAPSHOT {
                run.join(name)
            } else {
                folder.join(name)
            };
            fs::write(place, bytes).unwrap();
        }
    }
}

/// What a start does with such a folder. Nothing that a user has put there, or beside it, may be gone after it.
fn start(root: &Path) {
    let own = [
        "victim/mine.txt",
        "run/mine.txt",
        "run/checkpoint_best/commit.json",
        "run/model/config.json",
    ];
    for path in own {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "mine").unwrap();
    }
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(root.join("run")));
    if let Ok(mut run) = RunDir::open(store.clone(), Default::default()) {
        let names: Vec<String> = run
            .checkpoints()
            .iter()
            .map(|entry| entry.name.to_string())
            .collect();
        for name in names {
            if let Ok(reader) = run.reader(&name) {
                read(&reader);
            }
        }
        let next = run.begin();
        assert!(next.folder.starts_with("checkpoint_") && !next.folder.contains('/'));
        let _ = run.clean();
    }
    for path in own {
        assert!(root.join(path).exists(), "{path} was removed");
    }
}

fn read(reader: &Reader) {
    let slice = ShardSlice::whole(&[2, 3]);
    let _ = reader.read(TENSOR, &Role::Param, &slice, &mut [0.0; 6]);
    let _ = reader.verify(|_| {});
}

pub mod seeds {
    use super::run;

    pub fn manifest() -> Vec<Vec<u8>> {
        vec![run().file("manifest.json").to_vec()]
    }

    pub fn commit() -> Vec<Vec<u8>> {
        vec![run().file("commit.json").to_vec()]
    }

    pub fn snapshot() -> Vec<Vec<u8>> {
        let name = &run().checkpoint;
        let deleting = format!(
            r#"{{"checkpoint_results":[],"tandem_deleting":["{name}","../victim","..","","model","checkpoint_best","/"]}}"#
        );
        vec![run().snapshot.clone(), deleting.into_bytes()]
    }
}

/// A manifest, with a commit record that has its hash: whoever can change the one can change the other.
pub fn manifest(bytes: &[u8]) {
    let run = run();
    let mut record: Value = serde_json::from_slice(run.file("commit.json")).unwrap();
    record["manifest"]["bytes"] = json!(bytes.len());
    record["manifest"]["blake3"] = serde_json::to_value(Digest::of(bytes)).unwrap();
    if let Ok(manifest) = serde_json::from_slice::<Value>(bytes) {
        record["global_step"] = manifest["state"]["global_step"].clone();
    }
    let root = tempfile::tempdir().unwrap();
    let record = record.to_string();
    run.write(
        root.path(),
        &[("manifest.json", bytes), ("commit.json", record.as_bytes())],
    );
    start(root.path());
}

pub fn commit(bytes: &[u8]) {
    let root = tempfile::tempdir().unwrap();
    run().write(root.path(), &[("commit.json", bytes)]);
    start(root.path());
}

pub fn snapshot(bytes: &[u8]) {
    let root = tempfile::tempdir().unwrap();
    run().write(root.path(), &[(SNAPSHOT, bytes)]);
    start(root.path());
}
