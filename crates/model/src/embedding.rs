//! The vocabulary-parallel embedding.

use std::ops::Range;

use tandem_tensor::{Kind, Tensor, embedding};

use crate::error::ModelError;
use crate::tp_context::TpContext;

/// The rows of the embedding that this rank holds.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// Vocabulary entries of this rank's shard.
    pub vocab: Range<i64>,
    /// Kind of the residual stream.
    pub residual: Kind,
    /// Multiplies the vectors.
    pub scale: f64,
}

impl Embedding {
    /// Vectors of `ids` (i64 `[tokens]`): this rank's tokens of the residual stream.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn forward(
        &self,
        table: &Tensor,
        ids: &Tensor,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let partial = embedding::forward(table, ids, self.vocab.clone(), self.scale, self.residual);
        Ok(tp.reduce_tokens(partial)?)
    }

    /// Adds the gradient of the rows to the fp32 `d_table`. `d_out` is the gradient of this rank's tokens.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn backward(
        &self,
        d_table: &Tensor,
        d_out: &Tensor,
        ids: &Tensor,
        tp: &dyn TpContext,
    ) -> Result<(), ModelError> {
        let d_out = tp.gather_tokens(d_out)?;
        embedding::backward(d_table, &d_out, ids, self.vocab.clone(), self.scale);
        Ok(())
    }
}
