//! What the loop is told, and what it tells.

use crate::agreement::Requests;
use crate::events::{EvalMetrics, EventSink};
use crate::progress::RunCounters;
use crate::recorder::Recorder;
use crate::schedule::LearningRate;
use crate::update_rule::UpdateRule;

/// What the loop needs to know besides the engine.
#[derive(Debug, Clone, Copy)]
pub struct LoopSettings {
    /// The learning rate of every step.
    pub learning_rate: LearningRate,
    /// How gradients become updates.
    pub rule: UpdateRule,
    /// The last step of the run.
    pub last_step: u64,
    /// Compare replicas every so many steps; 0 never.
    pub check_interval: u64,
}

/// How a loop ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoopEnd {
    /// How far it came.
    pub counters: RunCounters,
    /// Whether it was asked to stop before its end. Everything is saved.
    pub stopped: bool,
    /// Loss of the last step, if there was one.
    pub loss: Option<f64>,
    /// The last evaluation, if there was one.
    pub evaluation: Option<EvalMetrics>,
}

/// Whoever reads the loop's progress and may end it.
pub struct Watcher<'a> {
    /// Where events go.
    pub sink: &'a mut dyn EventSink,
    /// Where metrics go.
    pub recorder: &'a mut Recorder,
    /// Labels collectives with the step, for their error messages.
    pub on_step: &'a dyn Fn(u64),
    /// What this rank was asked for since the last call.
    pub requests: &'a dyn Fn() -> Requests,
    /// Gives up a storage that cannot be written to, for the reason that it is given: what is written from now on goes elsewhere.
    /// Says whether there is such a place, the same on all ranks.
    pub leave_storage: &'a dyn Fn(&str) -> bool,
}
