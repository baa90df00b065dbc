//! The example program reads what a run has written.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use tandem_checkpoint::RunDir;
use tandem_checkpoint::store::LocalStore;

use crate::sample::{Mesh, save_and_register};

/// Cargo builds examples with the tests, into a folder beside theirs.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let debug = own.parent().and_then(|deps| deps.parent()).unwrap();
    debug.join("examples/read_checkpoint")
}

#[test]
fn the_example_reads_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalStore::new(folder.path()));
    let mut run = RunDir::open(store, Default::default()).unwrap();
    let name = save_and_register(&mut run, 7, Mesh { tp: 2, dp: 1 }).unwrap();
    let output = Command::new(program())
        .arg(folder.path())
        .arg("model.norm.weight")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for words in [
        &format!("{name}: step 7, epoch 0, written by fsdp"),
        "5 parameters",
        "model.norm.weight [6]: mean ",
        "the second half: 3 values",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}
