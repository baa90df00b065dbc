//! Trouble at every single operation of a save: afterwards, the newest checkpoint is whole, and the next save works.

use std::sync::Arc;

use tandem_checkpoint::store::{Fault, FaultStore, LocalStore, Store};
use tandem_checkpoint::{CheckpointError, Retention, RunDir};
use tempfile::TempDir;

use crate::moto::Moto;
use crate::sample::{Mesh, read_latest, save_and_register};
use crate::stores::in_memory;

const MESH: Mesh = Mesh { tp: 2, dp: 1 };

fn keep(num_to_keep: usize) -> Retention {
    Retention {
        num_to_keep: Some(num_to_keep),
        score: None,
    }
}

/// What a worker group does from start to its next checkpoint.
fn one_life(store: Arc<dyn Store>, save: u64) -> Result<(), CheckpointError> {
    let mut run = RunDir::open(store, keep(1))?;
    run.clean()?;
    save_and_register(&mut run, save, MESH)?;
    Ok(())
}

/// Strikes at operation 1, 1 + `stride`, ... of a life that saves and deletes, on a fresh store each time.
fn strike_everywhere(
    what: &str,
    stride: usize,
    fresh: impl Fn() -> Arc<dyn Store>,
    fault: impl Fn(u64) -> Fault,
) {
    let mut strikes = 0;
    let mut committed = 0;
    for at in (1..).step_by(stride) {
        let store = fresh();
        one_life(store.clone(), 1).expect("nothing is wrong yet");
        let faulty = FaultStore::new(store.clone(), fault(at));
        let saved = one_life(Arc::new(faulty.clone()), 2);
        if !faulty.has_struck() {
            saved.expect("nothing went wrong");
            break;
        }
        strikes += 1;

        // The newest checkpoint is whole before anything is tidied up, and the new one if the save said so.
        let newest = read_latest(&store)
            .expect("readable")
            .expect("a checkpoint");
        assert!(
            newest == 2 || newest == 1 && saved.is_err(),
            "{what} at {at}: {newest}, {saved:?}"
        );
        committed += usize::from(newest == 2);

        // The next life tidies up and saves.
        one_life(store.clone(), 3).unwrap_or_else(|error| panic!("{what} at {at}: then {error}"));
        assert_eq!(
            read_latest(&store).expect("readable"),
            Some(3),
            "{what} at {at}"
        );
        let run = RunDir::open(store.clone(), keep(1)).expect("opens");
        assert_eq!(
            run.checkpoints().len(),
            1,
            "{what} at {at}: {:?}",
            run.checkpoints()
        );
        assert!(run.torn().is_empty(), "{what} at {at}: {:?}", run.torn());
        assert!(
            run.warnings().is_empty(),
            "{what} at {at}: {:?}",
            run.warnings()
        );
        let left = store.list("").expect("lists");
        assert_eq!(left.len(), 2, "{what} at {at} left {left:?}");
    }
    println!("{what}: {strikes} strikes, of which {committed} came after the commit");
    assert!(
        strikes * stride > 30,
        "a save has more operations than {strikes}"
    );
    assert!(committed > 0 && committed < strikes);
}

fn local() -> impl Fn() -> Arc<dyn Store> {
    // Each store has a folder of its own below one that goes away with the closure.
    let root = TempDir::new().expect("a temporary folder");
    let count = std::cell::Cell::new(0);
    move || {
        count.set(count.get() + 1);
        Arc::new(LocalStore::new(root.path().join(count.get().to_string())))
    }
}

#[test]
fn killed_at_every_operation() {
    let kill = |at| Fault::Kill { at };
    strike_everywhere("kill, local folder", 1, local(), kill);
    strike_everywhere("kill, object store", 1, in_memory, kill);
}

#[test]
fn an_error_at_every_operation() {
    let error = |at| Fault::Error { at };
    strike_everywhere("error, local folder", 1, local(), error);
    strike_everywhere("error, object store", 1, in_memory, error);
    let short = |at| Fault::ShortWrite { at };
    strike_everywhere("short write, local folder", 1, local(), short);
}

#[test]
fn s3_killed_here_and_there() {
    let moto = Moto::start();
    let count = std::cell::Cell::new(0);
    let fresh = || {
        count.set(count.get() + 1);
        moto.store(&format!("torn/{}", count.get()))
    };
    strike_everywhere("kill, S3", 6, fresh, |at| Fault::Kill { at });
}
