//! One controller at a time for a run in object storage, on whatever machine.
//!
//! A folder has the kernel's lock (`.lock`). Object storage has none, but it can write an object on the condition that nobody
//! else has: so the controller keeps an object with its name, and renews it. A second controller is refused, and told by
//! whom. One that died stops renewing, and another takes over.

#[cfg(feature = "testing")]
mod beside;

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tandem_checkpoint::Store;
use tandem_checkpoint::store::{StoreError, StoreErrorKind, Version};
use tandem_launch::controller::LockOwner;
use tandem_launch::stop_signals::stop_this_process;

use crate::failure::{Failure, Outcome};
use crate::storage::Storage;

#[cfg(feature = "testing")]
pub use beside::start_beside;

/// The object.
const PATH: &str = "controller_lease.json";
/// Time between two renewals.
const RENEWAL: Duration = Duration::from_secs(20);
/// A lease that was not renewed for so long, by this machine's clock, may be a dead controller's.
const EXPIRY_S: u64 = 90;

/// What the object says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    owner: LockOwner,
    /// Seconds since 1970, by the owner's clock.
    renewed_at: u64,
    /// The owner left in good order.
    released: bool,
}

/// The right to write to a run, held until dropped.
pub struct Lease {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What to make of a lease that is there.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody holds it.
    Free,
    /// Somebody does.
    Held,
    /// Its owner is silent, or has another clock: whether it is renewed will tell.
    Watch,
}

impl Lease {
    /// Takes the lease of a run in object storage; a run in a folder needs none.
    ///
    /// # Errors
    /// Another controller holds it.
    pub fn take(storage: &Storage) -> Outcome<Option<Self>> {
        let store = Arc::clone(&storage.store);
        let own = LockOwner::this_process();
        match acquire(store.as_ref(), &own, RENEWAL)? {
            None => Ok(None),
            Some(version) => Self::renewed(store, own, version, storage.location.clone()).map(Some),
        }
    }

    /// Renews it on a thread until dropped.
    fn renewed(
        store: Arc<dyn Store>,
        owner: LockOwner,
        mut version: Version,
        location: String,
    ) -> Outcome<Self> {
        let (end, ended) = mpsc::channel();
        let work = move || {
            let mut is_warned = false;
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(RENEWAL) {
                match renew(store.as_ref(), &owner, &version) {
                    Ok(Renewed::Yes(newer)) => {
                        version = newer;
                        is_warned = false;
                    }
                    Ok(Renewed::TakenBy(other)) => {
                        tracing::warn!(
                            "{location} was taken over by another controller, {other}; this one ends"
                        );
                        stop_this_process();
                        return;
                    }
                    // The next renewal may work; the storage's own errors are the saves' to report.
                    Err(error) if !is_warned => {
                        tracing::warn!(%error, "cannot renew the lease of the run");
                        is_warned = true;
                    }
                    Err(_) => {}
                }
            }
            let last = record(&owner, true);
            // It expires by itself.
            let _ = store.put_version(PATH, &last, Some(&version));
        };
        let thread = Builder::new()
            .name("lease".to_owned())
            .spawn(work)
            .map_err(|error| {
                Failure::other(format!("cannot start the thread of the lease: {error}"))
            })?;
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

/// The version that is this controller's; `None` where the storage knows no versions.
fn acquire(store: &dyn Store, own: &LockOwner, renewal: Duration) -> Outcome<Option<Version>> {
    let mut watched: Option<Version> = None;
    loop {
        let found = match store.read_version(PATH) {
            Err(error) if error.kind == StoreErrorKind::Unsupported => return Ok(None),
            found => found.map_err(Failure::other)?,
        };
        let expected = match found {
            None => None,
            Some((bytes, version)) => {
                let record: Option<Record> = serde_json::from_slice(&bytes).ok();
                let verdict = record
                    .as_ref()
                    .map_or(Verdict::Free, |record| judge(record, own, unix_time()));
                // One that was silent for a whole renewal is dead.
                let is_silent = watched.as_ref() == Some(&version);
                match (verdict, &record) {
                    (Verdict::Held, Some(record)) => return Err(held(store, &record.owner)),
                    (Verdict::Watch, Some(record)) if !is_silent => {
                        if watched.is_some() {
                            return Err(held(store, &record.owner));
                        }
                        tracing::warn!(
                            "{} has not renewed its lease; looking for {} s whether it does",
                            record.owner,
                            2 * renewal.as_secs()
                        );
                        watched = Some(version);
                        std::thread::sleep(2 * renewal);
                        continue;
                    }
                    _ => Some(version),
                }
            }
        };
        match store.put_version(PATH, &record(own, false), expected.as_ref()) {
            Ok(version) => return Ok(Some(version)),
            // Somebody was quicker: look who.
            Err(error) if error.is_already_exists() => {}
            Err(error) if error.kind == StoreErrorKind::Unsupported => {
                tracing::warn!(
                    "this object storage cannot write on a condition, so nothing keeps a second controller out of {}",
                    store.locate("")
                );
                return Ok(None);
            }
            Err(error) => return Err(Failure::other(error)),
        }
    }
}

fn judge(found: &Record, own: &LockOwner, now: u64) -> Verdict {
    if found.released || found.owner == *own || !found.owner.may_be_alive() {
        return Verdict::Free;
    }
    // A clock that is ahead of this one does not make a lease old.
    match now.saturating_sub(found.renewed_at) < EXPIRY_S {
        true => Verdict::Held,
        false => Verdict::Watch,
    }
}

fn held(store: &dyn Store, owner: &LockOwner) -> Failure {
    Failure::other(format!(
        "another controller runs this experiment: {owner}; wait for it, end it, or pass another --experiment_name (it says so \
         in {}, and a controller that died is forgotten {EXPIRY_S} s later)",
        store.locate(PATH)
    ))
}

enum Renewed {
    Yes(Version),
    TakenBy(String),
}

fn renew(store: &dyn Store, own: &LockOwner, version: &Version) -> Result<Renewed, StoreError> {
    match store.put_version(PATH, &record(own, false), Some(version)) {
        Ok(version) => return Ok(Renewed::Yes(version)),
        Err(error) if !error.is_already_exists() => return Err(error),
        Err(_) => {}
    }
    let Some((bytes, version)) = store.read_version(PATH)? else {
        // Somebody has deleted the object: it is written again.
        return Ok(Renewed::Yes(store.put_version(
            PATH,
            &record(own, false),
            None,
        )?));
    };
    match serde_json::from_slice::<Record>(&bytes) {
        // An earlier renewal arrived, and only the answer to it was lost.
        Ok(found) if found.owner == *own => Ok(Renewed::Yes(version)),
        Ok(found) => Ok(Renewed::TakenBy(found.owner.to_string())),
        Err(_) => Ok(Renewed::TakenBy("which has not said its name".to_owned())),
    }
}

fn unix_time() -> u64 {
    // A clock before 1970 counts as one that knows nothing.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

fn record(owner: &LockOwner, released: bool) -> Vec<u8> {
    let record = Record {
        owner: owner.clone(),
        renewed_at: unix_time(),
        released,
    };
    // Text and numbers only: this does not fail.
    serde_json::to_vec(&record).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elsewhere(renewed_at: u64, released: bool) -> Record {
        let own = serde_json::to_value(LockOwner::this_process()).unwrap();
        let mut owner = own;
        owner["host"] = "elsewhere".into();
        Record {
            owner: serde_json::from_value(owner).unwrap(),
            renewed_at,
            released,
        }
    }

    #[test]
    fn a_lease_is_held_as_long_as_it_is_renewed() {
        let own = LockOwner::this_process();
        let of = |found: &Record, now| judge(found, &own, now);
        assert_eq!(of(&elsewhere(1000, false), 1000 + 89), Verdict::Held);
        assert_eq!(of(&elsewhere(1000, false), 1000 + 90), Verdict::Watch);
        assert_eq!(
            of(&elsewhere(1000, false), 10),
            Verdict::Held,
            "other clocks"
        );
        assert_eq!(of(&elsewhere(1000, true), 1000), Verdict::Free);
    }

    #[test]
    fn a_dead_process_of_this_host_holds_nothing() {
        let own = LockOwner::this_process();
        let mut dead = serde_json::to_value(&own).unwrap();
        dead["start_ticks"] = u64::MAX.into();
        let dead = Record {
            owner: serde_json::from_value(dead).unwrap(),
            ..elsewhere(1000, false)
        };
        assert_eq!(judge(&dead, &own, 1000), Verdict::Free);
    }
}
