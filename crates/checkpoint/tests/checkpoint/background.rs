//! Saving while training goes on.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tandem_checkpoint::store::{Fault, FaultStore, RemoteStore};
use tandem_checkpoint::{
    BackgroundWriter, CheckpointError, NewCheckpoint, Reader, Role, Snapshot, Store, TensorSpec,
    commit,
};
use tandem_mesh::ShardSlice;

use crate::sample::state;
use crate::stores::in_memory;

fn slow() -> Arc<dyn Store> {
    let config = ThrottleConfig {
        wait_put_per_call: Duration::from_millis(300),
        ..ThrottleConfig::default()
    };
    let objects = ThrottledStore::new(InMemory::new(), config);
    Arc::new(RemoteStore::new(Arc::new(objects), Path::from("r"), "memory://r").expect("threads"))
}

fn fill(snapshot: &mut Snapshot, parameters: &[f32]) {
    let slice = ShardSlice::whole(&[parameters.len()]);
    snapshot.push("w", Role::Param, slice, |out| {
        out.copy_from_slice(parameters)
    });
}

#[test]
fn training_may_change_what_is_being_saved() {
    let store = slow();
    let mut writer = BackgroundWriter::new(store.clone());
    assert!(writer.poll().is_none() && writer.wait().is_none());
    let parameters = Arc::new(Mutex::new(vec![1.0; 1000]));
    let own = Arc::clone(&parameters);
    let copying = writer.start_copying("c1", 0, move |snapshot| {
        fill(snapshot, &own.lock().unwrap());
    });
    copying.unwrap().wait();
    parameters.lock().unwrap().fill(2.0);
    let refused = writer.start_copying("c2", 0, |_| {}).unwrap_err();
    assert!(
        matches!(refused, CheckpointError::SaveInFlight),
        "{refused}"
    );
    let report = loop {
        if let Some(result) = writer.poll() {
            break result.unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(writer.poll().is_none() && writer.wait().is_none());
    let specs = [TensorSpec {
        name: "w".into(),
        shape: vec![1000],
        roles: vec![Role::Param],
    }];
    let new = NewCheckpoint::in_folder("c1");
    commit(store.as_ref(), &new, &specs, vec![report], state(1)).unwrap();
    let reader = Reader::open(store, "c1").unwrap();
    let mut out = vec![0.0; 1000];
    reader
        .read("w", &Role::Param, &ShardSlice::whole(&[1000]), &mut out)
        .unwrap();
    assert!(out.iter().all(|&value| value == 1.0));

    // The next save gets the memory of the last, without its contents.
    let copying = writer.start_copying("c2", 0, move |snapshot| {
        assert_eq!((snapshot.bytes(), snapshot.pieces().len()), (4000, 0));
        let parameters = parameters.lock().unwrap();
        fill(snapshot, &parameters);
        assert_eq!(snapshot.pieces()[0].data, *parameters);
    });
    copying.unwrap().wait();
    writer.wait().unwrap().unwrap();
}

#[test]
fn what_is_copied_by_the_writer_may_change_once_it_says_so() {
    let store = in_memory();
    let mut writer = BackgroundWriter::new(store.clone());
    let parameters = Arc::new(Mutex::new(vec![1.0; 1000]));
    let (may_copy, wait) = mpsc::channel();
    let copying = {
        let parameters = Arc::clone(&parameters);
        writer.start_copying("c1", 0, move |snapshot| {
            wait.recv().unwrap();
            fill(snapshot, &parameters.lock().unwrap());
        })
    }
    .unwrap();
    // The copy is made in the background, and is waited for.
    let update = std::thread::spawn(move || {
        copying.wait();
        parameters.lock().unwrap().fill(2.0);
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!update.is_finished() && writer.poll().is_none());
    may_copy.send(()).unwrap();
    update.join().unwrap();
    let report = writer.wait().unwrap().unwrap();
    let specs = [TensorSpec {
        name: "w".into(),
        shape: vec![1000],
        roles: vec![Role::Param],
    }];
    let new = NewCheckpoint::in_folder("c1");
    commit(store.as_ref(), &new, &specs, vec![report], state(1)).unwrap();
    let mut read = vec![0.0; 1000];
    Reader::open(store, "c1")
        .unwrap()
        .read("w", &Role::Param, &ShardSlice::whole(&[1000]), &mut read)
        .unwrap();
    assert!(read.iter().all(|v| *v == 1.0), "the update came too early");
}

#[test]
fn a_failed_save_is_reported_and_the_next_one_works() {
    let faulty = FaultStore::new(in_memory(), Fault::NoSpace { bytes: 10 });
    let mut writer = BackgroundWriter::new(Arc::new(faulty.clone()));
    let fill = |snapshot: &mut Snapshot| {
        snapshot.reserve(8);
        fill(snapshot, &[1.0; 8]);
        assert_eq!(snapshot.bytes(), 32);
    };
    writer.start_copying("c", 0, fill).unwrap();
    let error = writer.wait().unwrap().unwrap_err().to_string();
    assert!(
        error.contains("no space left") && error.contains("shard-00000"),
        "{error}"
    );
    faulty.set(Fault::None);
    writer.start_copying("c", 0, fill).unwrap();
    assert_eq!(writer.wait().unwrap().unwrap().pieces.len(), 1);
}
