//! Any error of this crate, for callers who pass them on.

use thiserror::Error;

use crate::{
    CacheError, DatasetError, HubError, LoaderError, RecordedError, SamplerError, ShareError,
    SourceError, TokenizerError,
};

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
    #[error(transparent)]
    Recorded(#[from] RecordedError),
}
