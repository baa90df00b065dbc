//! One conformance suite that every store must pass.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tandem_checkpoint::store::{
    Fault, FaultStore, LocalStore, PutMode, RemoteStore, Store, StoreError, StoreErrorKind,
};
use tempfile::TempDir;

use crate::moto::Moto;

pub fn in_memory() -> Arc<dyn Store> {
    let prefix = Path::from("runs/mine");
    let store = RemoteStore::new(Arc::new(InMemory::new()), prefix, "memory://runs/mine");
    Arc::new(store.expect("threads"))
}

#[test]
fn local_folder() {
    let folder = TempDir::new().unwrap();
    conforms(&LocalStore::new(folder.path().join("not/yet/there")));
}

#[test]
fn object_store_in_memory() {
    conforms(in_memory().as_ref());
    versions(in_memory().as_ref());
    let root = RemoteStore::new(Arc::new(InMemory::new()), Path::default(), "memory://").unwrap();
    conforms(&root);
}

#[test]
fn throttled() {
    let wait = Duration::from_millis(2);
    let config = ThrottleConfig {
        wait_get_per_call: wait,
        wait_put_per_call: wait,
        wait_delete_per_call: wait,
        wait_list_with_delimiter_per_call: wait,
        ..ThrottleConfig::default()
    };
    let objects = ThrottledStore::new(InMemory::new(), config);
    conforms(&RemoteStore::new(Arc::new(objects), Path::from("a"), "memory://a").unwrap());
}

#[test]
fn a_fault_store_without_a_fault() {
    conforms(&FaultStore::new(in_memory(), Fault::None));
}

#[test]
fn s3() {
    let moto = Moto::start();
    conforms(moto.store("conformance/prefix").as_ref());
    versions(moto.store("versions/prefix").as_ref());
}

/// Of several that write one file, the one that has seen it as it is succeeds.
fn versions(store: &dyn Store) {
    assert_eq!(store.read_version("lease").expect("reads"), None);
    let first = store.put_version("lease", b"a", None).expect("is absent");
    let kind = |result: Result<_, StoreError>| result.expect_err("a refusal").kind;
    let refused = StoreErrorKind::AlreadyExists;
    assert_eq!(kind(store.put_version("lease", b"b", None)), refused);
    let (bytes, seen) = store.read_version("lease").expect("reads").expect("a file");
    assert_eq!((bytes.as_slice(), &seen), (&b"a"[..], &first));
    let second = store
        .put_version("lease", b"c", Some(&first))
        .expect("the first version");
    assert_ne!(second, first);
    assert_eq!(
        kind(store.put_version("lease", b"d", Some(&first))),
        refused
    );
    let (bytes, _) = store.read_version("lease").expect("reads").expect("a file");
    assert_eq!(bytes, b"c");
    store.delete("lease").expect("deletes");
}

#[test]
fn a_folder_has_no_versions() {
    let folder = TempDir::new().unwrap();
    let store = LocalStore::new(folder.path());
    let error = store.read_version("lease").unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unsupported);
    let error = store.put_version("lease", b"a", None).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unsupported);
}

fn conforms(store: &dyn Store) {
    println!("checking {store:?}");
    absent_things(store);
    small_files(store);
    uploads(store);
    listing_and_deleting(store);
    several_threads(store);
}

fn absent_things(store: &dyn Store) {
    assert!(store.list("").expect("lists").is_empty());
    assert!(store.list("no/such").expect("lists").is_empty());
    store.delete("no/such").expect("deleting nothing is fine");
    store
        .delete_folder("no", &|_| true)
        .expect("deleting nothing is fine");
    let error = store.read("no/such").expect_err("absent");
    assert!(error.is_not_found(), "{error:?}");
    assert!(
        error.to_string().contains(&store.locate("no/such")),
        "{error}"
    );
}

fn small_files(store: &dyn Store) {
    store
        .put("f/a.json", b"one", PutMode::CreateNew)
        .expect("writes");
    let error = store
        .put("f/a.json", b"two", PutMode::CreateNew)
        .expect_err("taken");
    assert!(error.is_already_exists(), "{error:?}");
    assert_eq!(store.read("f/a.json").expect("reads"), b"one");
    store
        .put("f/a.json", b"three", PutMode::Replace)
        .expect("replaces");
    assert_eq!(store.read("f/a.json").expect("reads"), b"three");
    store.put("f/empty", b"", PutMode::Replace).expect("writes");
    assert_eq!(store.read("f/empty").expect("reads"), b"");
}

fn uploads(store: &dyn Store) {
    let bytes: Vec<u8> = (0..20_000_000u32).map(|i| (i % 251) as u8).collect();
    for size in [0, 1, 20_000_000] {
        let mut upload = store.create("u/file", size as u64).expect("begins");
        for part in bytes[..size].chunks(3_000_001) {
            upload.write(part).expect("writes");
        }
        let before = store.list("u").expect("lists");
        let is_new = |listed: &tandem_checkpoint::store::Listed| {
            listed.name == "file" && listed.size == Some(size as u64)
        };
        assert!(!before.iter().any(is_new), "visible before it is finished");
        upload.finish().expect("finishes");
        let file = store.open("u/file").expect("opens");
        assert_eq!(file.size(), size as u64);
        assert!(store.read("u/file").expect("reads") == bytes[..size]);
    }
    let file = store.open("u/file").expect("opens");
    let mut out = [0; 1000];
    file.read_at(9_999_999, &mut out).expect("reads");
    assert!(out[..] == bytes[9_999_999..10_000_999]);
    file.read_at(5, &mut []).expect("reads nothing");
    let error = file
        .read_at(19_999_500, &mut out)
        .expect_err("behind the end");
    assert!(
        !error.is_not_found() && error.to_string().contains("u/file"),
        "{error:?}"
    );

    let mut upload = store.create("u/abandoned", 10).expect("begins");
    upload.write(b"12345").expect("writes");
    drop(upload);
    let names: Vec<_> = store
        .list("u")
        .expect("lists")
        .into_iter()
        .map(|l| l.name)
        .collect();
    assert_eq!(names, ["file"]);
}

fn listing_and_deleting(store: &dyn Store) {
    for path in ["d/b", "d/a", "d/sub/x", "d/sub/deep/y", "dd"] {
        store
            .put(path, path.as_bytes(), PutMode::Replace)
            .expect("writes");
    }
    let listed: Vec<_> = store
        .list("d")
        .expect("lists")
        .into_iter()
        .map(|listed| (listed.name, listed.size))
        .collect();
    let expected = [("a", Some(3)), ("b", Some(3)), ("sub", None)];
    assert_eq!(listed, expected.map(|(name, size)| (name.to_owned(), size)));
    let sizes = store.sizes("d", &["b", "absent", "a"]).expect("looks");
    assert_eq!(sizes, [Some(3), None, Some(3)]);
    store.delete("d/a").expect("deletes");
    store.delete("d/a").expect("twice is fine");
    for folder in ["d/sub/deep", "d/sub", "d"] {
        store.delete_folder(folder, &|_| true).expect("deletes");
    }
    assert!(store.list("d").expect("lists").is_empty());
    assert_eq!(store.read("dd").expect("a neighbour stays"), b"dd");
}

fn several_threads(store: &dyn Store) {
    std::thread::scope(|scope| {
        for rank in 0..4 {
            scope.spawn(move || {
                let path = format!("t/{rank}");
                let mut upload = store.create(&path, 4).expect("begins");
                upload.write(&[rank; 4]).expect("writes");
                upload.finish().expect("finishes");
                assert_eq!(store.read(&path).expect("reads"), [rank; 4]);
            });
        }
    });
    let names: HashSet<_> = store
        .list("t")
        .expect("lists")
        .into_iter()
        .map(|l| l.name)
        .collect();
    assert_eq!(names.len(), 4);
}

#[test]
fn faults_strike_where_they_should() {
    let inner = in_memory();
    let store = FaultStore::new(inner.clone(), Fault::Error { at: 2 });
    store.put("a", b"1", PutMode::Replace).unwrap();
    assert!(store.put("a", b"2", PutMode::Replace).is_err() && store.has_struck());
    store.put("a", b"3", PutMode::Replace).unwrap();
    assert_eq!(store.operations(), 3);

    store.set(Fault::NoSpace { bytes: 5 });
    store.put("b", b"12345", PutMode::Replace).unwrap();
    let error = store.put("b", b"6", PutMode::Replace).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NoSpace);
    store.delete("b").unwrap();

    store.set(Fault::Kill { at: 1 });
    assert!(store.put("c", b"1", PutMode::Replace).is_err());
    assert!(store.read("a").is_err() && store.delete("a").is_err());
    assert_eq!(inner.read("a").unwrap(), b"3");
}
