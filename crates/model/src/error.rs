//! What can go wrong while a module computes.

/// A collective between the ranks that share a layer failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TpError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// A module could not finish.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A collective failed; the source says which and why.
    #[error(transparent)]
    Tp(#[from] TpError),
}
