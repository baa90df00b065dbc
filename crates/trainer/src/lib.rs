//! Training: the engine that a rank builds, the step, the loop around it, and what it reports.
//!
//! Start reading at [`train_step`]: it is the path of the data through one optimizer step, top to bottom, with every
//! collective where it happens.
//!
//! `examples/tiny_model.rs` is the least that trains:
//!
//! ```
#![doc = include_str!("../examples/tiny_model.rs")]
//! ```

mod agreement;
mod balance;
mod checkpointer;
mod engine;
mod engine_state;
mod error;
mod evaluate;
mod events;
mod feed;
mod finite;
pub mod gemm_floor;
mod global_batch;
mod inspect;
mod journal;
pub mod memory_floor;
mod micro_batch;
mod outcome;
mod peak;
mod profile;
mod progress;
mod recorder;
mod schedule;
pub mod stopwatch;
mod tensorboard;
mod train_loop;
mod train_step;
mod turn;
mod units;
mod update_rule;
mod validation;

pub use agreement::{Requests, gather_problems};
pub use balance::ExpertReport;
pub use checkpointer::{CheckpointSetup, Checkpointer, SaveRule, VALIDATION};
pub use engine::{Engine, EngineSetup, ExpertRanks};
pub use error::TrainError;
pub use evaluate::{EvalSet, evaluate};
pub use events::{EvalMetrics, EventSink, SavedCheckpoint, StepMetrics, TrainEvent};
pub use inspect::{first_row_logits, gather_tensor};
pub use micro_batch::MicroBatch;
pub use profile::{Activity, Profiler};
pub use progress::RunCounters;
pub use recorder::Recorder;
pub use schedule::{LearningRate, Schedule, WarmupType};
pub use tandem_parallel::WeightDecayOn;
pub use train_loop::{LoopEnd, LoopSettings, Watcher, train_loop};
pub use train_step::{StepReport, train_step};
pub use update_rule::UpdateRule;
pub use validation::{Validation, ValidationRule, ValidationState};
