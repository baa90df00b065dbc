//! Where a run stands, beside its tensors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that continuing at the exact next sample needs besides tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Who wrote it: `deepspeed` or `fsdp`. Any other can load it.
    pub strategy: String,
    /// Ranks in a row of the mesh that wrote it.
    pub tp_size: usize,
    /// Rows of the mesh that wrote it.
    pub dp_size: usize,
    /// ZeRO stage of the run that wrote it, where it has one.
    pub zero_stage: Option<u8>,
    /// Identifies architecture and sizes of the model.
    pub model_fingerprint: String,
    /// Identifies the tokenized data set and how it is cut into samples.
    pub data_fingerprint: String,
    /// Seed of the order of the data.
    pub seed: u64,
    /// Tokens in a sample.
    pub seq_length: usize,
    /// The epoch of the sample to continue with, from 0.
    pub epoch: u64,
    /// The sample to continue with, counted within its epoch. At the very end of an epoch it may be the number of samples.
    pub next_sample: u64,
    /// Optimizer steps that were done.
    pub global_step: u64,
    /// Samples that were trained on, over the whole run.
    pub next_global_sample: u64,
    /// Tokens that were trained on.
    pub tokens_seen: u64,
    /// State of the learning rate's schedule.
    #[serde(default)]
    pub scheduler: BTreeMap<String, Value>,
    /// Losses and other measurements; retention can rank checkpoints by one of them.
    #[serde(default)]
    pub metrics: BTreeMap<String, Value>,
    /// Flags that may differ when the run continues, to show what has changed.
    #[serde(default)]
    pub settings: BTreeMap<String, Value>,
    /// Anything else.
    #[serde(default)]
    pub extra: BTreeMap<String, Value>,
}
