//! What can go wrong while ranks work together.

use tandem_comm::CommError;
use tandem_model::TpError;

/// A sharded operation could not finish.
#[derive(Debug, thiserror::Error)]
pub enum ParallelError {
    /// A collective failed; the source says which, with whom and why.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// Weights could not be read.
    #[error("cannot load {tensor}: {source}")]
    Weights {
        /// Hugging Face's name of the tensor.
        tensor: String,
        /// What the source of the weights says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Ranks of one tensor parallel row were given different tokens.
    #[error(
        "the ranks of one tensor parallel row see different batches at step {step}: ranks {ranks:?} have hashes {hashes:x?}; \
         every rank of a row must read the data of its dp_rank"
    )]
    DifferentBatches {
        /// The optimizer step.
        step: u64,
        /// World ranks of the row.
        ranks: Vec<usize>,
        /// Hash of the batch, per rank.
        hashes: Vec<i64>,
    },
    /// Copies of one parameter differ between ranks.
    #[error(
        "{tensor} has drifted apart at step {step}: rank {rank_a} and rank {rank_b} hold different bits of what must be the same; \
         the run stops before more harm is done: resume from an earlier checkpoint, and suspect the memory or the device of one of them"
    )]
    Drift {
        /// Hugging Face's name.
        tensor: String,
        /// The optimizer step.
        step: u64,
        /// World rank of one holder.
        rank_a: usize,
        /// World rank of another.
        rank_b: usize,
    },
}

/// As modules see it.
pub(crate) fn tp_error(error: CommError) -> TpError {
    TpError(Box::new(error))
}
