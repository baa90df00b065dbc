//! What is in the checkpoints of a run, for tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tandem_checkpoint::store::LocalStore;
use tandem_checkpoint::{CheckpointEntry, Reader, Retention, Role, RunDir};
use tandem_mesh::ShardSlice;

use crate::demo::{self, Run};

/// The tensors of a checkpoint, whole, by name and role.
pub type Content = BTreeMap<(String, Role), Vec<f32>>;

pub fn run_dir(folder: &Path) -> RunDir {
    RunDir::open(Arc::new(LocalStore::new(folder)), Retention::default()).unwrap()
}

/// All checkpoints, oldest first.
pub fn checkpoints(folder: &Path) -> Vec<CheckpointEntry> {
    run_dir(folder).checkpoints().to_vec()
}

pub fn steps(folder: &Path) -> Vec<u64> {
    let all = checkpoints(folder);
    all.iter().map(|entry| entry.global_step).collect()
}

/// Starts a run that saves at once and has no end, and kills its controller when there are two checkpoints. Returns the step of
/// the newest.
pub fn killed_after_two(run: &Run) -> u64 {
    let mut child = demo::train(run).stderr(Stdio::null()).spawn().unwrap();
    demo::wait_until("there are two checkpoints", || {
        run.dir().is_dir() && steps(&run.dir()).len() >= 2
    });
    let workers = demo::workers_of(child.id());
    demo::kill(child.id(), "KILL");
    child.wait().unwrap();
    demo::assert_gone_soon(&workers, Duration::from_secs(30));
    steps(&run.dir()).last().copied().unwrap()
}

/// The newest checkpoint.
pub fn newest(folder: &Path) -> Reader {
    let run = run_dir(folder);
    run.reader(&run.latest().expect("a checkpoint").name)
        .unwrap()
}

pub fn content(reader: &Reader) -> Content {
    let mut content = Content::new();
    for (name, record) in &reader.manifest().tensors {
        for role in record.roles.keys() {
            let slice = ShardSlice::whole(&record.shape);
            let mut values = vec![0.0; slice.numel()];
            reader.read(name, role, &slice, &mut values).unwrap();
            content.insert((name.clone(), role.clone()), values);
        }
    }
    content
}

/// Largest difference of any element of each role, relative to the largest element of its tensor.
pub fn differences(a: &Content, b: &Content) -> BTreeMap<Role, f64> {
    assert_eq!(
        a.keys().collect::<Vec<_>>(),
        b.keys().collect::<Vec<_>>(),
        "they hold different tensors"
    );
    let mut worst = BTreeMap::new();
    for ((name, role), values) in a {
        let other = &b[&(name.clone(), role.clone())];
        assert_eq!(values.len(), other.len(), "{name}");
        let largest = values.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
        let difference = values
            .iter()
            .zip(other)
            .map(|(a, b)| f64::from((a - b).abs()))
            .fold(0.0, f64::max);
        let entry: &mut f64 = worst.entry(role.clone()).or_default();
        *entry = entry.max(difference / f64::from(largest));
    }
    worst
}

/// Fails when a folder of a save that was cut off is left.
pub fn assert_nothing_torn(folder: &Path) {
    let run = run_dir(folder);
    assert!(run.torn().is_empty(), "left behind: {:?}", run.torn());
}
