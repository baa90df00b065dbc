//! Any error of this crate, for callers who pass them on; and those of what gives batches, which stand here because
//! [`BatchSource`](crate::BatchSource) speaks of all of them.

use thiserror::Error;

use crate::{CacheError, HubError, SamplerError, ShareError, SourceError, TokenizerError};

/// What went wrong, as the module that noticed it says it.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each variant is one module's error, documented there
pub enum DataError {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Loader(#[from] LoaderError),
}

/// Why there are no rows.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DatasetError {
    /// A position needs one before it to be a target.
    #[error(
        "seq_length is {seq_length}: it must be at least 2, so that a token can predict the next, and less than 2^32"
    )]
    SeqLength {
        /// What was asked for.
        seq_length: usize,
    },
    /// Not one full window.
    #[error(
        "the dataset has {tokens} tokens in all, {missing} fewer than one packed row of {seq_length}: \
         use more data or a smaller seq_length"
    )]
    TooFewTokens {
        /// Tokens, with the EOS after each document.
        tokens: u64,
        /// The difference.
        missing: u64,
        /// Tokens of a row.
        seq_length: usize,
    },
    /// More than numbers of 32 bits can count.
    #[error(
        "the dataset has {documents} documents, too many to be packed by best fit: use --packing_strategy wrapped"
    )]
    TooManyDocuments {
        /// Documents that have at least one token.
        documents: u64,
    },
    /// Nothing to predict anywhere.
    #[error(
        "none of the {documents} documents has a target: two tokens at least, of which one behind the first is trained, \
         within seq_length"
    )]
    NoTargets {
        /// Documents that have at least one token.
        documents: u64,
    },
}

/// Why there are no further batches.
#[derive(Debug, Error)]
pub enum LoaderError {
    /// Ranks that cannot be.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Ranks that would take other rows than the order has.
    #[error("the sampler gives {sampler} samples a step, but the ranks' shares add up to {shares}")]
    GlobalBatch {
        /// Samples of a step.
        sampler: u64,
        /// Rows of all ranks.
        shares: usize,
    },
    /// No thread.
    #[error("cannot start the thread that loads data: {source}")]
    Thread {
        /// Why.
        source: std::io::Error,
    },
    /// A defect, not a condition of the data.
    #[error("the thread that loads data failed: {reason}")]
    Panicked {
        /// What it said.
        reason: String,
    },
    /// The loader had failed before.
    #[error("no batches after the loader failed")]
    Stopped,
}
