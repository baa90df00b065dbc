//! One decoder layer, forward and backward, with every tensor parallel conversation where it happens.

mod adapter;
mod attention;
mod experts;
mod mlp;
mod residual;

use std::rc::Rc;
use std::sync::Arc;

use tandem_tensor::Accumulate;
use tandem_tensor::attention::{AttentionSpec, Documents};
use tandem_tensor::experts::{Balance, Counted};
use tandem_tensor::glu::Activation;
use tandem_tensor::rms_norm::NormSpec;
use tandem_tensor::{Kind, Tensor};

use crate::error::ModelError;
use crate::rope_table::RopeTable;
use crate::tensors::{LayerDims, LayerTensors, WholeBlocks};
use crate::tp_context::{Shares, TpContext, WholeBlock};

pub use adapter::Gradients;
use attention::AttentionSaved;
use mlp::MlpSaved;
use residual::{BranchSaved, Joined};

/// What a layer needs to compute besides its tensors.
#[derive(Debug, Clone)]
pub struct DecoderLayer {
    /// The slice that this rank computes.
    pub dims: LayerDims,
    /// The blocks of it that are no slice.
    pub whole: WholeBlocks,
    /// Cosines and sines for this sequence length, where the layer embeds positions.
    pub rope: Option<Rc<RopeTable>>,
    /// Scale, soft cap and sliding window of the attention.
    pub attention: AttentionSpec,
    /// What every norm computes.
    pub norm: NormSpec,
    /// What the MLP's gate goes through.
    pub activation: Activation,
    /// Multiplies what a block adds to the residual stream.
    pub residual_scale: f64,
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
    load: Option<Tensor>,
    blocks: Option<BlocksSaved>,
}

impl LayerSaved {
    /// What its experts got of the tokens that count, where the layer is a mixture: fp64 `[2, experts]`, for each expert the tokens that
    /// chose it and the sum of its probabilities, on the device.
    pub fn load(&self) -> Option<&Tensor> {
        self.load.as_ref()
    }
}

/// What a layer is told about its tokens besides their vectors; the same for all ranks of the row.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenFacts<'a> {
    /// Tokens see their own one of these only.
    pub documents: Option<&'a Arc<Documents>>,
    /// Of the tokens that this rank's routers see, which count in the load of experts.
    pub counted: Counted<'a>,
}

/// Whether a layer's backward writes the gradients of weights or adds to them.
#[derive(Debug, Clone, Copy)]
pub struct LayerAccumulate {
    /// Of all but what follows.
    pub layer: Accumulate,
    /// Of its experts, which have a buffer of their own where they are spread over ranks.
    pub experts: Accumulate,
}

impl From<Accumulate> for LayerAccumulate {
    fn from(both: Accumulate) -> Self {
        Self {
            layer: both,
            experts: both,
        }
    }
}

#[derive(Debug)]
struct BlocksSaved {
    attention: AttentionSaved,
    attention_branch: Option<BranchSaved>,
    /// The residual stream between attention and MLP.
    middle: Tensor,
    mlp: MlpSaved,
    mlp_branch: Option<BranchSaved>,
}

impl DecoderLayer {
    /// `x` is this rank's tokens of the residual stream, `[tokens, hidden]`; so is the result. `facts` are about all the row's
    /// tokens.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn forward(
        &self,
        weights: &LayerTensors,
        x: Tensor,
        facts: TokenFacts<'_>,
        tp: &dyn TpContext,
        recompute: Recompute,
    ) -> Result<(Tensor, LayerSaved), ModelError> {
        let TokenFacts { documents, counted } = facts;
        let keeps_all = recompute == Recompute::None;
        let (out, blocks) = self.blocks_forward(weights, &x, documents, tp, keeps_all)?;
        let saved = LayerSaved {
            input: x,
            documents: documents.cloned(),
            load: blocks.mlp.load(counted),
            blocks: (recompute != Recompute::Full).then_some(blocks),
        };
        Ok((out, saved))
    }

    /// From the gradient of the output to the gradient of the input, both for this rank's tokens; the gradients of the
    /// weights go to (or are added to) the fp32 `gradients`. `balance` is this rank's part of the loss that keeps experts in
    /// balance, where the layer is a mixture and there is one.
    ///
    /// # Errors
    /// When a peer fails.
    #[expect(
        clippy::too_many_arguments,
        reason = "weights, gradients and saved state, as of each block"
    )]
    pub fn backward(
        &self,
        weights: &LayerTensors,
        gradients: Gradients<'_>,
        accumulate: LayerAccumulate,
        saved: LayerSaved,
        d_out: Tensor,
        balance: Option<Balance<'_>>,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let LayerSaved {
            input,
            documents,
            blocks,
            ..
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
            attention_branch,
            middle,
            mlp,
            mlp_branch,
        } = blocks;
        let own = gradients.weights();
        let after = &weights.norm_after_mlp;
        let d_after = own.and_then(|own| own.norm_after_mlp.as_ref());
        let d_branch = self.branch_backward(&d_out, mlp_branch, after, d_after, accumulate.layer);
        let (whole, shares) = (WholeBlock(tp), Shares(tp));
        let row = self.mlp_row(&whole, &shares, tp);
        let d_middle = self.mlp_backward(
            weights, gradients, accumulate, &middle, mlp, d_branch, d_out, balance, row,
        )?;
        let (after, accumulate) = (&weights.norm_after_attention, accumulate.layer);
        let d_after = own.and_then(|own| own.norm_after_attention.as_ref());
        let d_branch =
            self.branch_backward(&d_middle, attention_branch, after, d_after, accumulate);
        let row = pick(self.whole.attention, &whole, tp);
        self.attention_backward(
            weights, gradients, accumulate, &input, attention, d_branch, d_middle, row,
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
        let (whole, shares) = (WholeBlock(tp), Shares(tp));
        let row = pick(self.whole.attention, &whole, tp);
        let (delta, attention) = self.attention_forward(weights, x, documents, row, keeps_all)?;
        let Joined { sum, next, branch } = self.join(
            x,
            delta,
            weights.o_bias.as_ref(),
            weights.norm_after_attention.as_ref(),
            weights.norm_before_mlp.as_ref(),
        );
        let row = self.mlp_row(&whole, &shares, tp);
        let (delta, mlp) = self.mlp_forward(weights, &sum, next, row, keeps_all)?;
        let (bias, after) = (weights.mlp.bias(), weights.norm_after_mlp.as_ref());
        let out = self.join(&sum, delta, bias, after, None);
        let saved = BlocksSaved {
            attention,
            attention_branch: branch,
            middle: sum,
            mlp,
            mlp_branch: out.branch,
        };
        Ok((out.sum, saved))
    }

    /// The row as the second block sees it.
    fn mlp_row<'a>(
        &self,
        whole: &'a WholeBlock<'a>,
        shares: &'a Shares<'a>,
        tp: &'a dyn TpContext,
    ) -> &'a dyn TpContext {
        match self.dims.experts {
            Some(_) if tp.expert_peers().is_some() => shares,
            _ => pick(self.whole.mlp, whole, tp),
        }
    }
}

/// The row as a block sees it.
fn pick<'a>(is_whole: bool, whole: &'a WholeBlock<'a>, tp: &'a dyn TpContext) -> &'a dyn TpContext {
    match is_whole {
        true => whole,
        false => tp,
    }
}
