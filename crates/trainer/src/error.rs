//! What ends a training run before its time.

use tandem_comm::CommError;
use tandem_model::{ModelError, TpError};
use tandem_parallel::ParallelError;

/// Training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A collective of a layer failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A collective or a check failed.
    #[error(transparent)]
    Parallel(#[from] ParallelError),
    /// A collective failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// Loss or gradient is not a number.
    #[error(
        "the {what} is {value} at step {step}, first seen on rank(s) {ranks:?}; the parameters were not updated. Lower --learning_rate, \
         add --warmup_steps, or look for bad data in this step's batch"
    )]
    NotFinite {
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The optimizer step.
        step: u64,
        /// World ranks whose own part is not finite.
        ranks: Vec<usize>,
    },
    /// Nothing to learn from.
    #[error("the global batch of step {step} has no target: every label is ignored")]
    NoTargets {
        /// The optimizer step.
        step: u64,
    },
    /// Nothing to measure.
    #[error(
        "none of the {rows} rows that are evaluated has a target: every label is ignored; use another --eval_dataset_name or \
         --eval_split, or more --eval_max_batches"
    )]
    NoEvalTargets {
        /// Rows that were looked at.
        rows: u64,
    },
    /// The mesh cannot run this model.
    #[error("{0}")]
    Unsuitable(String),
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The last checkpoint of a run could not be written.
    #[error("cannot save the state after step {step}, the last of this run: {problem}")]
    Save {
        /// The optimizer step.
        step: u64,
        /// Which ranks, and why.
        problem: String,
    },
    /// The device does not take a batch.
    #[error("the batch does not get to the device: {0}")]
    Feed(String),
    /// Data could not be had.
    #[error(transparent)]
    Data(Box<dyn std::error::Error + Send + Sync>),
}

impl TrainError {
    /// The failed collective behind this error, if that is what it is.
    pub fn comm_error(&self) -> Option<&CommError> {
        match self {
            Self::Comm(error) | Self::Parallel(ParallelError::Comm(error)) => Some(error),
            Self::Model(ModelError::Tp(TpError(error))) => error.downcast_ref(),
            _ => None,
        }
    }
}
