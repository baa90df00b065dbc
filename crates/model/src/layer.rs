//! One decoder layer, forward and backward, with every tensor parallel conversation where it happens.

mod attention;
mod mlp;

use std::rc::Rc;
use std::sync::Arc;

use tandem_tensor::Accumulate;
use tandem_tensor::attention::{AttentionSpec, Documents};
use tandem_tensor::rms_norm::{self, Residual};
use tandem_tensor::{Kind, Tensor};

use crate::error::ModelError;
use crate::rope_table::RopeTable;
use crate::tensors::{LayerDims, LayerTensors};
use crate::tp_context::TpContext;

use attention::AttentionSaved;
use mlp::MlpSaved;

/// What a layer needs to compute besides its tensors.
#[derive(Debug, Clone)]
pub struct DecoderLayer {
    /// The slice that this rank computes.
    pub dims: LayerDims,
    /// Cosines and sines for this sequence length.
    pub rope: Rc<RopeTable>,
    /// Scale and sliding window of the attention.
    pub attention: AttentionSpec,
    /// Added to the mean square in every norm.
    pub eps: f64,
    /// Kind of the matrix products and of what they produce.
    pub matmul: Kind,
    /// Tokens per sequence.
    pub seq: usize,
}

/// What happens to a layer's activations between forward and backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recompute {
    /// All that backward needs is kept.
    None,
    /// What is cheap is computed again: the outputs of the norms and the product of the MLP's two branches.
    Light,
    /// Only the layer's input is kept; backward runs the forward again (arXiv 1604.06174).
    Full,
}

/// What backward needs from forward.
#[derive(Debug)]
pub struct LayerSaved {
    /// This rank's tokens of the residual stream, as they entered the layer.
    input: Tensor,
    /// For computing again.
    documents: Option<Arc<Documents>>,
    blocks: Option<BlocksSaved>,
}

#[derive(Debug)]
struct BlocksSaved {
    attention: AttentionSaved,
    /// The residual stream between attention and MLP.
    middle: Tensor,
    mlp: MlpSaved,
}

impl DecoderLayer {
    /// `x` is this rank's tokens of the residual stream, `[tokens, hidden]`; so is the result. Tokens see their own one of the
    /// `documents` only, which are those of all the row's tokens.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn forward(
        &self,
        weights: &LayerTensors,
        x: Tensor,
        documents: Option<&Arc<Documents>>,
        tp: &dyn TpContext,
        recompute: Recompute,
    ) -> Result<(Tensor, LayerSaved), ModelError> {
        let keeps_all = recompute == Recompute::None;
        let (out, blocks) = self.blocks_forward(weights, &x, documents, tp, keeps_all)?;
        let saved = LayerSaved {
            input: x,
            documents: documents.cloned(),
            blocks: (recompute != Recompute::Full).then_some(blocks),
        };
        Ok((out, saved))
    }

    /// From the gradient of the output to the gradient of the input, both for this rank's tokens; the gradients of the
    /// weights go to (or are added to) the fp32 `gradients`.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn backward(
        &self,
        weights: &LayerTensors,
        gradients: &LayerTensors,
        accumulate: Accumulate,
        saved: LayerSaved,
        d_out: Tensor,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let LayerSaved {
            input,
            documents,
            blocks,
        } = saved;
        let blocks = match blocks {
            Some(blocks) => blocks,
            // Whatever is computed now is needed now.
            None => {
                let documents = documents.as_ref();
                self.blocks_forward(weights, &input, documents, tp, true)?.1
            }
        };
        let BlocksSaved {
            attention,
            middle,
            mlp,
        } = blocks;
        let d_middle =
            self.mlp_backward(weights, gradients, accumulate, &middle, mlp, d_out, tp)?;
        self.attention_backward(
            weights, gradients, accumulate, &input, attention, d_middle, tp,
        )
    }

    fn blocks_forward(
        &self,
        weights: &LayerTensors,
        x: &Tensor,
        documents: Option<&Arc<Documents>>,
        tp: &dyn TpContext,
        keeps_all: bool,
    ) -> Result<(Tensor, BlocksSaved), ModelError> {
        let (delta, attention) = self.attention_forward(weights, x, documents, tp, keeps_all)?;
        let normed = self.norm_after_attention(weights, x, delta);
        let (out, mlp) = self.mlp_forward(weights, &normed, tp, keeps_all)?;
        let saved = BlocksSaved {
            attention,
            middle: normed.sum,
            mlp,
        };
        Ok((out, saved))
    }

    /// A norm's output for all tokens, as forward computed it.
    fn norm_again(
        &self,
        x: &Tensor,
        weight: &Tensor,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let (normed, _) = rms_norm::forward(x, weight, self.eps, self.matmul);
        Ok(tp.gather_tokens(&normed)?)
    }

    /// The residual stream after the attention, and its norm, in one pass where no bias comes between.
    fn norm_after_attention(&self, weights: &LayerTensors, x: &Tensor, delta: Tensor) -> Residual {
        let (norm, bias) = (&weights.post_norm, weights.o_bias.as_ref());
        if bias.is_none() {
            return rms_norm::forward_residual(x, &delta, norm, self.eps, self.matmul);
        }
        let sum = add_residual(x, delta, bias);
        let (y, rstd) = rms_norm::forward(&sum, norm, self.eps, self.matmul);
        Residual { sum, y, rstd }
    }
}

/// `residual + delta (+ bias)` in the kind of the residual stream.
fn add_residual(residual: &Tensor, delta: Tensor, bias: Option<&Tensor>) -> Tensor {
    let sum = residual + delta.to_kind(residual.kind());
    match bias {
        Some(bias) => sum + bias.to_kind(residual.kind()),
        None => sum,
    }
}
