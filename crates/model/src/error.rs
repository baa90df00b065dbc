//! What can go wrong while a module computes.

use crate::tp_context::TpError;

/// A module could not finish.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A collective of the tensor parallel group failed; the source says which and why.
    #[error(transparent)]
    Tp(#[from] TpError),
}
