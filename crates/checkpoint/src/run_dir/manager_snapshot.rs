//! `checkpoint_manager_snapshot.json`, in the model of Ray Train V2's own checkpoint manager.
//!
//! Ray 2.51 to 2.53 know `version`, `checkpoint_results` and `latest_checkpoint_result`; 2.54 added the report indices and
//! pending validations, 2.55 and 2.56 the names by outcome of validation (`_CheckpointManagerState` in
//! `ray/train/v2/_internal/execution/checkpoint/checkpoint_manager.py`). All are written, so that any of them can go on; what
//! an old one did not write is made up for when it is read. Ray ignores fields that it does not know, and so do we, but we
//! hand them on.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::retention::Retention;
use crate::error::CheckpointError;
use crate::names::CheckpointName;
use crate::store::{PutMode, Store, StoreError, StoreErrorKind};

/// Ray's name for it.
pub(super) const SNAPSHOT_FILE: &str = "checkpoint_manager_snapshot.json";

/// What it may have; a checkpoint takes less than a kilobyte of it.
const MAX_BYTES: u64 = 64 << 20;

/// The snapshot as it is in the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ManagerSnapshot {
    #[serde(default)]
    version: u64,
    /// From worst to best.
    checkpoint_results: Vec<TrainingResult>,
    /// Number of the report that brought each of `checkpoint_results`.
    #[serde(default)]
    checkpoint_report_indices: Vec<u64>,
    #[serde(default)]
    latest_checkpoint_result: Option<TrainingResult>,
    #[serde(default)]
    pending_training_results: Vec<TrainingResult>,
    #[serde(default)]
    pending_validation_specs: Vec<Value>,
    /// Number of the next report.
    #[serde(default)]
    current_report_index: u64,
    #[serde(default)]
    validated_checkpoint_dir_names: Vec<String>,
    #[serde(default)]
    timed_out_validation_checkpoint_dir_names: Vec<String>,
    #[serde(default)]
    failed_validation_checkpoint_dir_names: Vec<String>,
    /// Ours: checkpoints whose deletion was begun.
    #[serde(default, rename = "tandem_deleting", deserialize_with = "names")]
    pub deleting: Vec<CheckpointName>,
    /// What only Ray knows the meaning of.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A checkpoint with what was reported of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TrainingResult {
    /// Its folder's name.
    pub checkpoint_dir_name: String,
    /// Whatever the workers reported.
    pub metrics: Map<String, Value>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl ManagerSnapshot {
    /// Reads the snapshot. One that is damaged is replaced by an empty one, with a warning: Ray does not write it
    /// atomically, and the folders say the same.
    pub fn read(store: &dyn Store) -> Result<(Self, Option<String>), CheckpointError> {
        let bytes = match store.read_limited(SNAPSHOT_FILE, MAX_BYTES) {
            Err(error) if error.is_not_found() => return Ok((Self::default(), None)),
            result => result?,
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(mut snapshot) => {
                snapshot.make_whole();
                Ok((snapshot, None))
            }
            Err(error) => {
                let warning = format!(
                    "{} is damaged ({error}); the list of checkpoints was made anew from their folders",
                    store.locate(SNAPSHOT_FILE)
                );
                Ok((Self::default(), Some(warning)))
            }
        }
    }

    /// Replaces the file in one step.
    pub fn write(&self, store: &dyn Store) -> Result<(), StoreError> {
        let json = serde_json::to_vec(self).map_err(|error| StoreError {
            operation: "write",
            location: store.locate(SNAPSHOT_FILE),
            kind: StoreErrorKind::Other,
            source: error.into(),
        })?;
        store.put(SNAPSHOT_FILE, &json, PutMode::Replace)
    }

    /// Whether it has this checkpoint.
    pub fn lists(&self, name: &str) -> bool {
        let mut results = self.checkpoint_results.iter();
        results.any(|result| result.checkpoint_dir_name == name)
    }

    /// Enters a checkpoint as the next report, unless it is listed already.
    pub fn add(&mut self, result: TrainingResult) {
        let name = &result.checkpoint_dir_name;
        if self
            .checkpoint_results
            .iter()
            .any(|r| r.checkpoint_dir_name == *name)
        {
            return;
        }
        self.checkpoint_results.push(result);
        self.checkpoint_report_indices
            .push(self.current_report_index);
        self.current_report_index = self.current_report_index.saturating_add(1);
    }

    /// Keeps only the checkpoints that `keep` names, everywhere: Ray refuses a snapshot that contradicts itself.
    pub fn retain(&mut self, keep: impl Fn(&String) -> bool) {
        let kept = |result: &TrainingResult| keep(&result.checkpoint_dir_name);
        let pairs = std::mem::take(&mut self.checkpoint_results)
            .into_iter()
            .zip(std::mem::take(&mut self.checkpoint_report_indices));
        (self.checkpoint_results, self.checkpoint_report_indices) =
            pairs.filter(|(result, _)| kept(result)).unzip();
        let pending = std::mem::take(&mut self.pending_training_results)
            .into_iter()
            .zip(std::mem::take(&mut self.pending_validation_specs));
        (self.pending_training_results, self.pending_validation_specs) =
            pending.filter(|(result, _)| kept(result)).unzip();
        for names in [
            &mut self.validated_checkpoint_dir_names,
            &mut self.timed_out_validation_checkpoint_dir_names,
            &mut self.failed_validation_checkpoint_dir_names,
        ] {
            names.retain(&keep);
        }
        if self
            .latest_checkpoint_result
            .as_ref()
            .is_some_and(|r| !kept(r))
        {
            self.latest_checkpoint_result = None;
        }
    }

    /// Orders the checkpoints from worst to best; of equals, the later is better.
    pub fn sort(&mut self, retention: &Retention) {
        let mut pairs: Vec<(TrainingResult, u64)> = std::mem::take(&mut self.checkpoint_results)
            .into_iter()
            .zip(std::mem::take(&mut self.checkpoint_report_indices))
            .collect();
        pairs.sort_by(|(a, a_index), (b, b_index)| {
            let goodness = |result: &TrainingResult| retention.goodness(&result.metrics);
            goodness(a)
                .total_cmp(&goodness(b))
                .then(a_index.cmp(b_index))
        });
        (self.checkpoint_results, self.checkpoint_report_indices) = pairs.into_iter().unzip();
    }

    /// Says which checkpoint is the latest.
    pub fn set_latest(&mut self, name: &str) {
        let mut results = self.checkpoint_results.iter();
        self.latest_checkpoint_result = results.find(|r| r.checkpoint_dir_name == name).cloned();
    }

    /// All but the best `num_to_keep`, without those whose validation Ray has not finished.
    pub fn beyond(&self, num_to_keep: Option<usize>) -> impl Iterator<Item = &str> {
        let listed = self.checkpoint_results.len();
        let count = num_to_keep.map_or(0, |keep| listed.saturating_sub(keep));
        let is_pending = move |result: &TrainingResult| {
            let mut pending = self.pending_training_results.iter();
            pending.any(|p| p.checkpoint_dir_name == result.checkpoint_dir_name)
        };
        self.checkpoint_results[..count]
            .iter()
            .filter(move |result| !is_pending(result))
            .map(|result| result.checkpoint_dir_name.as_str())
    }

    /// Fills in what the Ray that wrote it did not know.
    fn make_whole(&mut self) {
        let results = self.checkpoint_results.len();
        if self.checkpoint_report_indices.len() != results {
            self.checkpoint_report_indices = (0..results as u64).collect();
        }
        let next = self
            .checkpoint_report_indices
            .iter()
            .max()
            .map_or(0, |max| max.saturating_add(1));
        self.current_report_index = self.current_report_index.max(next);
        self.pending_validation_specs
            .resize(self.pending_training_results.len(), Value::Bool(true));
    }
}

/// Names of checkpoints. What is none is passed over: nothing of ours has such a name, and the list is still good for the rest.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<CheckpointName>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    Ok(names
        .into_iter()
        .filter_map(|name| CheckpointName::new(name).ok())
        .collect())
}
