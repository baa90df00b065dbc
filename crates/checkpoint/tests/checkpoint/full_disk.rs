//! A disk that is full: the save fails with that reason, leaves no space taken, and what was there stays.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tandem_checkpoint::store::{Fault, FaultStore, LocalStore, StoreErrorKind};
use tandem_checkpoint::{CheckpointError, RunDir, Store};
use tempfile::TempDir;

use crate::sample::{Mesh, read_latest, save_and_register};

const MESH: Mesh = Mesh { tp: 1, dp: 2 };

/// Saves until the disk is full.
fn fill(store: &Arc<dyn Store>) -> (u64, CheckpointError) {
    let mut run = RunDir::open(store.clone(), Default::default()).expect("opens");
    for number in 1..10_000 {
        if let Err(error) = save_and_register(&mut run, number, MESH) {
            return (number - 1, error);
        }
    }
    panic!("the disk is never full");
}

fn assert_full(saved: u64, error: &CheckpointError) {
    assert!(saved > 0, "{error}");
    let CheckpointError::Store(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.kind, StoreErrorKind::NoSpace, "{error}");
}

#[test]
fn injected() {
    let root = TempDir::new().unwrap();
    let inner: Arc<dyn Store> = Arc::new(LocalStore::new(root.path()));
    for bytes in (20_000..30_000).step_by(333) {
        let faulty = FaultStore::new(inner.clone(), Fault::NoSpace { bytes });
        let store: Arc<dyn Store> = Arc::new(faulty.clone());
        let (saved, error) = fill(&store);
        assert_full(saved, &error);
        // A save that was committed but could not be entered into the snapshot counts.
        let newest = read_latest(&inner).unwrap().unwrap();
        assert!(
            newest == saved || newest == saved + 1,
            "{bytes}: {newest}, {saved}"
        );
        for listed in inner.list("").unwrap() {
            match listed.size {
                Some(_) => inner.delete(&listed.name).unwrap(),
                None => inner.delete_folder(&listed.name, &|_| true).unwrap(),
            }
        }
    }
}

/// A small tmpfs, gone with this value.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = TempDir::new().ok()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(folder.path())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn real() {
    let Some(disk) = SmallDisk::mount() else {
        println!("note: mounting a tmpfs is not permitted here; `injected` stands for a full disk");
        return injected();
    };
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(disk.path().join("run")));
    let (saved, error) = fill(&store);
    assert_full(saved, &error);
    println!("{saved} saves fit; then: {error}");
    let newest = read_latest(&store).unwrap().unwrap();
    assert!(newest == saved || newest == saved + 1);

    // Once there is room again, the run goes on.
    let mut run = RunDir::open(store.clone(), Default::default()).unwrap();
    let oldest = run.checkpoints()[0].name.clone();
    let second = run.checkpoints()[1].name.clone();
    store.delete_folder(&oldest, &|_| true).unwrap();
    store.delete_folder(&second, &|_| true).unwrap();
    run = RunDir::open(store.clone(), Default::default()).unwrap();
    run.clean().unwrap();
    assert!(run.torn().is_empty());
    save_and_register(&mut run, newest + 1, MESH).unwrap();
    assert_eq!(read_latest(&store).unwrap(), Some(newest + 1));
}
