//! The folder of one experiment, laid out as Ray Train V2 does it: checkpoints beside a snapshot that lists them.
//!
//! The snapshot is derived data. A folder with a commit record is a checkpoint whether the snapshot knows it or not, so a
//! crash between the two loses nothing. What the snapshot alone knows is which deletions were under way.

mod manager_snapshot;
mod model_files;
mod retention;
mod scan;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::commit::NewCheckpoint;
use crate::error::CheckpointError;
use crate::names::CheckpointName;
use crate::reader::{Reader, read_commit};
use crate::store::{Store, StoreError};
use manager_snapshot::{ManagerSnapshot, TrainingResult};
use scan::delete_checkpoint;

pub use model_files::model_files;
pub use retention::{Retention, Score, ScoreOrder};

/// The folder of an experiment.
#[derive(Debug)]
pub struct RunDir {
    store: Arc<dyn Store>,
    retention: Retention,
    snapshot: ManagerSnapshot,
    /// Oldest first.
    checkpoints: Vec<CheckpointEntry>,
    torn: Vec<CheckpointName>,
    /// What is left of checkpoints whose deletion was begun.
    deleting: Vec<CheckpointName>,
    warnings: Vec<String>,
}

/// A checkpoint of the experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointEntry {
    /// Its folder's name.
    pub name: CheckpointName,
    /// When its save began, in microseconds since 1970, UTC.
    pub created_unix_us: i64,
    /// Optimizer steps that were done.
    pub global_step: u64,
    /// Losses and other measurements.
    pub metrics: BTreeMap<String, Value>,
    /// Why it cannot be read, where that is known already: a damaged commit record, or one of a newer program.
    pub problem: Option<String>,
}

/// What [`RunDir::register`] deleted to make room.
#[derive(Debug, Default)]
pub struct Registered {
    /// Names of the checkpoints that are gone.
    pub deleted: Vec<CheckpointName>,
    /// Checkpoints that should be gone, and why they are not. They are tried again at the next [`RunDir::clean`].
    pub not_deleted: Vec<(CheckpointName, StoreError)>,
}

impl RunDir {
    /// Looks at what is at the root of `store`, and changes nothing.
    ///
    /// # Errors
    /// The store refuses, or a retention that would keep nothing.
    pub fn open(store: Arc<dyn Store>, retention: Retention) -> Result<Self, CheckpointError> {
        if retention.num_to_keep == Some(0) {
            return Err(CheckpointError::NothingToKeep);
        }
        let (snapshot, warning) = ManagerSnapshot::read(store.as_ref())?;
        let scan::Found {
            checkpoints,
            torn,
            deleting,
        } = scan::scan(store.as_ref(), &snapshot)?;
        Ok(Self {
            store,
            retention,
            snapshot,
            checkpoints,
            torn,
            deleting,
            warnings: warning.into_iter().collect(),
        })
    }

    /// The store whose root this is.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// All checkpoints, oldest first.
    pub fn checkpoints(&self) -> &[CheckpointEntry] {
        &self.checkpoints
    }

    /// The newest checkpoint.
    pub fn latest(&self) -> Option<&CheckpointEntry> {
        self.checkpoints.last()
    }

    /// Folders that saves or deletions have left half done, which [`RunDir::clean`] will remove.
    pub fn torn(&self) -> &[CheckpointName] {
        &self.torn
    }

    /// What was odd, in words for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Opens a checkpoint.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn reader(&self, name: &str) -> Result<Reader, CheckpointError> {
        Reader::open(self.store.clone(), name)
    }

    /// Removes what saves have left half done, and leaves the snapshot to somebody else (Ray). As [`RunDir::clean`] for the
    /// rest.
    ///
    /// # Errors
    /// The store refuses; the call can be repeated.
    pub fn remove_torn(&mut self) -> Result<Vec<CheckpointName>, CheckpointError> {
        for name in &self.torn {
            delete_checkpoint(self.store.as_ref(), name)?;
        }
        Ok(std::mem::take(&mut self.torn))
    }

    /// Removes what saves and deletions have left half done, and brings the snapshot up to date. Call it when no worker of
    /// an earlier attempt can be writing any more. Returns the names of removed folders.
    ///
    /// # Errors
    /// The store refuses; the call can be repeated.
    pub fn clean(&mut self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let mut removed = self.deleting.clone();
        removed.extend(self.torn.iter().cloned());
        removed.sort();
        for name in &removed {
            delete_checkpoint(self.store.as_ref(), name)?;
        }
        self.torn.clear();
        self.deleting.clear();
        self.snapshot.deleting.clear();
        self.update_results()?;
        // Also when nothing has changed: an old Ray may have left out what a newer one demands.
        if self.snapshot != ManagerSnapshot::default() || !removed.is_empty() {
            self.snapshot.write(self.store.as_ref())?;
        }
        Ok(removed)
    }

    /// Names the next checkpoint: later than all others, whatever the clock says.
    pub fn begin(&self) -> NewCheckpoint {
        let now = Timestamp::now().as_microsecond();
        let last = self
            .latest()
            .map_or(i64::MIN, |latest| latest.created_unix_us);
        let created_unix_us = now.max(last.saturating_add(1));
        NewCheckpoint {
            folder: scan::folder_name(created_unix_us),
            created_unix_us,
        }
    }

    /// Enters a committed checkpoint into the snapshot, then deletes those that retention no longer wants. The latest is
    /// always kept, and nothing is deleted before the snapshot is written without it.
    ///
    /// # Errors
    /// The checkpoint is not committed, or the snapshot cannot be written; nothing is deleted then, and the checkpoint is
    /// found all the same when the folder is opened again.
    pub fn register(&mut self, name: &str) -> Result<Registered, CheckpointError> {
        let name = &CheckpointName::new(name)?;
        let commit = read_commit(self.store.as_ref(), name)?;
        self.checkpoints.retain(|entry| entry.name != *name);
        self.checkpoints.push(CheckpointEntry {
            name: name.clone(),
            created_unix_us: commit.created_unix_us,
            global_step: commit.global_step,
            metrics: commit.metrics,
            problem: None,
        });
        self.checkpoints.sort_by_key(|entry| entry.created_unix_us);
        self.update_results()?;

        let superfluous = self.superfluous();
        self.checkpoints
            .retain(|entry| !superfluous.contains(&entry.name));
        let going: BTreeSet<&str> = superfluous.iter().map(CheckpointName::as_str).collect();
        self.snapshot.retain(|name| !going.contains(name.as_str()));
        self.snapshot.deleting.extend(superfluous.iter().cloned());
        self.snapshot.write(self.store.as_ref())?;

        let mut registered = Registered::default();
        for name in superfluous {
            match delete_checkpoint(self.store.as_ref(), &name) {
                Ok(()) => registered.deleted.push(name),
                Err(error) => registered.not_deleted.push((name, error)),
            }
        }
        // The file still has the names of what is gone, which does no harm; the next write drops them.
        self.snapshot
            .deleting
            .retain(|name| !registered.deleted.contains(name));
        Ok(registered)
    }

    /// Removes the folder of a save that failed.
    ///
    /// # Errors
    /// The store refuses; [`RunDir::clean`] will try again.
    pub fn discard(&self, new: &NewCheckpoint) -> Result<(), CheckpointError> {
        let name = CheckpointName::new(&new.folder)?;
        Ok(delete_checkpoint(self.store.as_ref(), &name)?)
    }

    /// Makes the snapshot's list that of the checkpoints that are there, in retention's order.
    fn update_results(&mut self) -> Result<(), StoreError> {
        // Others may have put checkpoints of another kind here, which the snapshot must go on to list as long as they exist.
        let folders: HashSet<String> = self
            .store
            .list("")?
            .into_iter()
            .filter(|listed| listed.size.is_none())
            .map(|listed| listed.name)
            .collect();
        self.snapshot.retain(|name| folders.contains(name));
        for entry in &self.checkpoints {
            self.snapshot.add(TrainingResult {
                checkpoint_dir_name: entry.name.to_string(),
                metrics: entry.metrics.clone().into_iter().collect(),
                rest: serde_json::Map::new(),
            });
        }
        self.snapshot.sort(&self.retention);
        let latest = self.latest().map(|latest| latest.name.clone());
        if let Some(name) = latest {
            self.snapshot.set_latest(&name);
        }
        Ok(())
    }

    /// Checkpoints that retention no longer wants.
    fn superfluous(&self) -> Vec<CheckpointName> {
        let latest = self.latest().map(|latest| latest.name.as_str());
        let ours = |name: &str| {
            let mut own = self.checkpoints.iter();
            own.find(|entry| entry.name == name)
                .map(|entry| entry.name.clone())
        };
        self.snapshot
            .beyond(self.retention.num_to_keep)
            .filter(|name| Some(*name) != latest)
            .filter_map(ours)
            .collect()
    }
}
