//! What a collective makes, before it is there.

use tandem_tensor::Tensor;

use crate::error::TpError;

/// The result of a collective under way.
pub trait PendingTensor {
    /// Blocks until the result is there.
    ///
    /// # Errors
    /// When a peer fails.
    fn wait(self: Box<Self>) -> Result<Tensor, TpError>;
}

impl PendingTensor for Tensor {
    fn wait(self: Box<Self>) -> Result<Tensor, TpError> {
        Ok(*self)
    }
}
