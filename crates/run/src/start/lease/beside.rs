//! A start where anybody may have left anything for a lease: for fuzz tests.

use std::sync::Mutex;
use std::time::Duration;

use tandem_checkpoint::Store;
use tandem_checkpoint::store::{
    Listed, PutMode, ReadAt, StoreError, StoreErrorKind, Upload, Version,
};
use tandem_launch::controller::LockOwner;

use super::{Record, acquire};

/// A storage of one object, whose versions are numbers.
#[derive(Debug)]
struct OneObject(Mutex<(Vec<u8>, u64)>);

impl OneObject {
    fn refused(&self, operation: &'static str, kind: StoreErrorKind) -> StoreError {
        StoreError {
            operation,
            location: self.locate(""),
            kind,
            source: "it has one object only".into(),
        }
    }
}

fn version(number: u64) -> Version {
    Version {
        e_tag: None,
        number: Some(number.to_string()),
    }
}

impl Store for OneObject {
    fn locate(&self, path: &str) -> String {
        format!("one://{path}")
    }

    fn create(&self, _: &str, _: u64) -> Result<Box<dyn Upload>, StoreError> {
        Err(self.refused("create", StoreErrorKind::Unsupported))
    }

    fn put(&self, _: &str, _: &[u8], _: PutMode) -> Result<(), StoreError> {
        Err(self.refused("write", StoreErrorKind::Unsupported))
    }

    fn read_version(&self, _: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        let object = self.0.lock().expect("no test panics while it holds this");
        Ok(Some((object.0.clone(), version(object.1))))
    }

    fn put_version(
        &self,
        _: &str,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        let mut object = self.0.lock().expect("no test panics while it holds this");
        if expected != Some(&version(object.1)) {
            return Err(self.refused("write", StoreErrorKind::AlreadyExists));
        }
        *object = (bytes.to_vec(), object.1 + 1);
        Ok(version(object.1))
    }

    fn open(&self, _: &str) -> Result<Box<dyn ReadAt>, StoreError> {
        Err(self.refused("open", StoreErrorKind::NotFound))
    }

    fn list(&self, _: &str) -> Result<Vec<Listed>, StoreError> {
        Ok(Vec::new())
    }

    fn delete(&self, _: &str) -> Result<(), StoreError> {
        Err(self.refused("delete", StoreErrorKind::Unsupported))
    }

    fn delete_folder(&self, _: &str, _: &dyn Fn(&str) -> bool) -> Result<(), StoreError> {
        Err(self.refused("delete", StoreErrorKind::Unsupported))
    }
}

/// Starts a controller whose storage has `object` for a lease. Returns what it is told when it may not run; when it may,
/// the lease is its own.
///
/// # Panics
/// The lease is neither held by somebody nor its own.
pub fn start_beside(object: &[u8]) -> Option<String> {
    let store = OneObject(Mutex::new((object.to_vec(), 7)));
    let own = LockOwner::this_process();
    match acquire(&store, &own, Duration::ZERO) {
        Err(failure) => Some(failure.message),
        Ok(version) => {
            assert!(version.is_some(), "this storage knows versions");
            let (object, _) = store.0.into_inner().expect("no test panics here");
            let record: Record = serde_json::from_slice(&object).expect("a record was written");
            assert!(record.owner == own && !record.released, "{record:?}");
            None
        }
    }
}
