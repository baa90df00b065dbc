//! What a run tells whoever watches it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::balance::ExpertReport;

/// The numbers of one optimizer step; a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The optimizer step, counted from 1.
    pub step: u64,
    /// The pass over the data, counted from 0.
    pub epoch: u64,
    /// Mean cross entropy over the valid targets of the global batch.
    pub loss: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of the global batch, padding included, per second.
    pub tokens_per_s: f64,
    /// The same for one of the devices.
    pub tokens_per_s_per_device: f64,
    /// Seconds from the end of the previous step to the end of this one.
    pub step_time_s: f64,
    /// How much of it training waited for a save.
    pub saving_s: f64,
    /// Tokens of all steps so far.
    pub tokens_seen: u64,
    /// Valid targets of this step.
    pub n_tokens: u64,
    /// 10^12 model FLOPs per second, of one of the devices.
    pub tflops_per_device: f64,
    /// Model FLOPs utilisation: the model FLOPs per second as a fraction of the devices' peak.
    pub mfu: f64,
    /// Largest resident set so far, in MB, per rank.
    pub peak_memory_mb: Vec<f64>,
    /// What the experts got, where the model has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertReport>,
    /// When the step ended, in seconds since 1970.
    pub time: f64,
}

impl StepMetrics {
    /// What a checkpoint keeps of them: numbers by name, by any of which checkpoints can be ranked.
    pub fn to_saved(&self) -> BTreeMap<String, serde_json::Value> {
        let numbers = [
            ("loss", self.loss),
            ("lr", self.lr),
            ("grad_norm", self.grad_norm),
            ("tokens_per_s", self.tokens_per_s),
            ("step_time_s", self.step_time_s),
            ("mfu", self.mfu),
        ];
        let counts = [
            ("step", self.step),
            ("epoch", self.epoch),
            ("tokens_seen", self.tokens_seen),
        ];
        let numbers = numbers.map(|(name, value)| (name.to_owned(), value.into()));
        let counts = counts.map(|(name, value)| (name.to_owned(), value.into()));
        numbers.into_iter().chain(counts).collect()
    }
}

/// The numbers of one evaluation; a line of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EvalMetrics {
    /// Optimizer steps done before it.
    pub step: u64,
    /// Mean cross entropy over all valid targets of the evaluated rows.
    pub eval_loss: f64,
    /// `exp(eval_loss)`.
    pub perplexity: f64,
    /// Valid targets.
    pub eval_tokens: u64,
    /// From beginning to end.
    pub eval_seconds: f64,
}

impl From<EvalMetrics> for TrainEvent {
    fn from(metrics: EvalMetrics) -> Self {
        Self::Evaluated {
            step: metrics.step,
            eval_loss: metrics.eval_loss,
            perplexity: metrics.perplexity,
            tokens: metrics.eval_tokens,
            seconds: metrics.eval_seconds,
        }
    }
}

/// A checkpoint that was just committed.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedCheckpoint {
    /// Its folder's name in the run's.
    pub name: String,
    /// The optimizer step after which the state was copied.
    pub step: u64,
    /// Loss and other measurements of that step.
    pub metrics: BTreeMap<String, serde_json::Value>,
    /// From beginning to end.
    pub seconds: f64,
    /// For how much of it training waited.
    pub blocked_s: f64,
    /// Older checkpoints that were deleted.
    pub deleted: Vec<String>,
    /// What did not work, but does no harm to the checkpoint.
    pub warnings: Vec<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainEvent {
    /// A part of the start-up has begun.
    Phase(String),
    /// Part of a long piece of preparation is done.
    Progress {
        /// What is being done.
        what: String,
        /// Done so far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Lines for the reader at the start: mesh, plan, sizes.
    Summary(Vec<String>),
    /// Training starts.
    Begin {
        /// The first step that will run.
        first_step: u64,
        /// The last.
        last_step: u64,
    },
    /// Lines for the reader: where the time of the profiled steps went.
    Profile(Vec<String>),
    /// A step is done.
    Step(StepMetrics),
    /// Training waits for an evaluation, which is getting on.
    Evaluating,
    /// The model was evaluated.
    Evaluated {
        /// Optimizer steps done before it.
        step: u64,
        /// Mean cross entropy over all valid targets of the evaluated rows.
        eval_loss: f64,
        /// `exp(eval_loss)`.
        perplexity: f64,
        /// Valid targets.
        tokens: u64,
        /// From beginning to end.
        seconds: f64,
    },
    /// Training waits for a save.
    Saving,
    /// There is a new checkpoint.
    Saved(SavedCheckpoint),
    /// A save did not become a checkpoint; the run goes on.
    SaveFailed {
        /// The optimizer step.
        step: u64,
        /// Which ranks, and why.
        problem: String,
    },
    /// The run is over.
    End,
}

/// Where events go. Only rank 0 of a run has a sink that shows them.
pub trait EventSink {
    /// Takes note of `event`. Must not block for long: training waits.
    fn event(&mut self, event: TrainEvent);
}

/// Nobody watches.
impl EventSink for () {
    fn event(&mut self, _event: TrainEvent) {}
}
