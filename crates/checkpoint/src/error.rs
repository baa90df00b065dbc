//! What can be wrong with checkpoints.

use thiserror::Error;

use crate::coverage::CoverageError;
use crate::hf::WeightsError;
use crate::names::NameError;
use crate::piece::Role;
use crate::store::StoreError;

/// A checkpoint that cannot be written or read. Messages name the file, and the tensor where there is one.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The store did not do what was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no commit record: the save was never finished.
    #[error(
        "{location} is not a checkpoint: it has no commit record (commit.json), so its save was never finished"
    )]
    NotCommitted {
        /// The folder.
        location: String,
    },
    /// The manifest or the commit record is damaged.
    #[error("{location} is damaged: {problem}")]
    Damaged {
        /// The file.
        location: String,
        /// What is wrong.
        problem: String,
    },
    /// A newer program wrote it.
    #[error(
        "{location} has format version {found}, this program reads up to {supported}: use a newer version of Tandem"
    )]
    NewerFormat {
        /// The file.
        location: String,
        /// Its version.
        found: u64,
        /// The newest that is understood.
        supported: u64,
    },
    /// A shard is not there.
    #[error("{location} is missing; it holds {tensors}")]
    FileMissing {
        /// The file.
        location: String,
        /// Some of the tensors in it.
        tensors: String,
    },
    /// A shard is shorter or longer than when it was written.
    #[error("{location} has {found} bytes instead of {expected}; it holds {tensors}")]
    FileSize {
        /// The file.
        location: String,
        /// Bytes that were written.
        expected: u64,
        /// Bytes that are there.
        found: u64,
        /// Some of the tensors in it.
        tensors: String,
    },
    /// Bytes are not those that were written.
    #[error(
        "{location}: bytes {begin} to {end}, of {role} of tensor {tensor:?}, are not those that were written (their hash differs)"
    )]
    Corrupt {
        /// The file.
        location: String,
        /// The tensor.
        tensor: String,
        /// What of it.
        role: Role,
        /// First byte of the damaged part.
        begin: u64,
        /// The byte behind it.
        end: u64,
    },
    /// The checkpoint does not hold this.
    #[error("{location} holds no {role} of tensor {tensor:?}")]
    NoSuchTensor {
        /// The checkpoint.
        location: String,
        /// The tensor.
        tensor: String,
        /// What of it.
        role: Role,
    },
    /// A tensor has another shape than is asked for.
    #[error("{location}: tensor {tensor:?} has shape {found:?}, not {expected:?}")]
    Shape {
        /// The checkpoint.
        location: String,
        /// The tensor.
        tensor: String,
        /// The shape that is needed.
        expected: Vec<usize>,
        /// The shape in the checkpoint.
        found: Vec<usize>,
    },
    /// The pieces of all ranks are not the whole.
    #[error(transparent)]
    Coverage(#[from] CoverageError),
    /// A piece has not as many elements as its slice.
    #[error("{role} of tensor {tensor:?}: {found} elements were given for a slice of {expected}")]
    PieceSize {
        /// The tensor.
        tensor: String,
        /// What of it.
        role: Role,
        /// Elements of the slice.
        expected: usize,
        /// Elements that were given.
        found: usize,
    },
    /// A shard that another rank wrote cannot be seen.
    #[error("{location}, which rank {rank} wrote, {problem}: is the storage shared by all hosts?")]
    NotShared {
        /// The file.
        location: String,
        /// Who wrote it.
        rank: usize,
        /// What is seen instead.
        problem: String,
    },
    /// A save was started while another was under way.
    #[error("a save is under way already; wait for its result first")]
    SaveInFlight,
    /// The thread that writes is gone.
    #[error("the thread that writes checkpoints {problem}")]
    Thread {
        /// What happened to it.
        problem: String,
    },
    /// Retention that makes no sense.
    #[error("num_to_keep must be 1 at least")]
    NothingToKeep,
    /// A link where a file of the run's own should be.
    #[error(
        "{location} is a link to somewhere else, which is not followed; put there what it leads to"
    )]
    Link {
        /// The link.
        location: String,
    },
    /// The name of something that is no checkpoint.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A Hugging Face folder could not be written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}
