//! How far a run has come.

use tandem_data::Position;

use crate::events::{EvalMetrics, StepMetrics};
use crate::validation::ValidationState;

/// What is counted over all steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunCounters {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens of all steps so far.
    pub tokens_seen: u64,
    /// Samples of all steps so far.
    pub samples_seen: u64,
}

/// Where a run is after a step: what a checkpoint says besides the tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResumePoint {
    pub counters: RunCounters,
    /// The sample to continue with.
    pub next: Position,
    /// Of the step.
    pub metrics: StepMetrics,
    /// Of an evaluation after it.
    pub evaluation: Option<EvalMetrics>,
    /// How evaluations went so far, where there are any.
    pub validation: Option<ValidationState>,
}
