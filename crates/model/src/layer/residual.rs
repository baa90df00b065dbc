//! Where a block leaves the residual stream and comes back to it: the norm before it, the norm on its branch, the addition.

use tandem_tensor::rms_norm::{self, Branch, Residual};
use tandem_tensor::{Accumulate, linear};
use tandem_tensor::{Kind, Tensor};

use super::DecoderLayer;
use crate::error::ModelError;
use crate::tp_context::TpContext;

/// The residual stream after a block.
pub(super) struct Joined {
    /// With what the block added.
    pub(super) sum: Tensor,
    /// The norm of that, in the kind of the matrix products, with its `rstd`, where a norm comes next.
    pub(super) next: Option<(Tensor, Tensor)>,
    /// What backward needs of the norm on the branch, where there is one.
    pub(super) branch: Option<BranchSaved>,
}

/// What the backward pass of a branch's norm needs.
#[derive(Debug)]
pub(super) struct BranchSaved {
    /// Before the norm, with its bias, for this rank's tokens.
    delta: Tensor,
    rstd: Tensor,
}

/// The gradient of what a block computes, before its norm and its bias.
pub(super) struct BranchGradient {
    /// In the kind of the matrix products.
    pub(super) d_delta: Tensor,
    /// The same where the bias was added.
    pub(super) d_biased: Tensor,
}

impl DecoderLayer {
    /// Adds what a block computed to the residual stream `x`, by way of the norm `after` where there is one, and computes the
    /// norm `next` of the sum: in one pass where no bias comes between.
    pub(super) fn join(
        &self,
        x: &Tensor,
        delta: Tensor,
        bias: Option<&Tensor>,
        after: Option<&Tensor>,
        next: Option<&Tensor>,
    ) -> Joined {
        let (spec, scale) = (self.norm, self.residual_scale);
        if let Some(after) = after {
            let delta = match bias {
                Some(bias) => delta + bias.to_kind(self.matmul),
                None => delta,
            };
            if scale != 1.0 {
                let (normed, rstd) = rms_norm::forward(&delta, after, spec, self.matmul);
                let branch = Some(BranchSaved { delta, rstd });
                let joined = self.join(x, normed, None, None, next);
                return Joined { branch, ..joined };
            }
            let Branch {
                sum,
                branch_rstd,
                next,
            } = rms_norm::forward_branch(x, &delta, after, next, spec);
            let branch = Some(BranchSaved {
                delta,
                rstd: branch_rstd,
            });
            return Joined { sum, next, branch };
        }
        if let (Some(norm), None) = (next, bias) {
            let Residual { sum, y, rstd } =
                rms_norm::forward_residual(x, &delta, scale, norm, spec, self.matmul);
            return Joined {
                sum,
                next: Some((y, rstd)),
                branch: None,
            };
        }
        let sum = add_residual(x, delta, scale, bias);
        let next = next.map(|norm| rms_norm::forward(&sum, norm, spec, self.matmul));
        Joined {
            sum,
            next,
            branch: None,
        }
    }

    /// From the gradient `d_out` of the residual stream after a block to that of what the block computed.
    pub(super) fn branch_backward(
        &self,
        d_out: &Tensor,
        saved: Option<BranchSaved>,
        after: &Option<Tensor>,
        d_after: Option<&Tensor>,
        accumulate: Accumulate,
    ) -> BranchGradient {
        let d_added = match self.residual_scale {
            1.0 => d_out.shallow_clone(),
            scale => d_out * scale,
        };
        let (Some(saved), Some(after)) = (saved, after) else {
            return BranchGradient {
                d_delta: d_added.to_kind(self.matmul),
                d_biased: d_added,
            };
        };
        let BranchSaved { delta, rstd } = saved;
        let (d_delta, d_norm) = rms_norm::backward(&d_added, &delta, after, &rstd, self.norm);
        if let Some(d_after) = d_after {
            linear::store(d_after, &d_norm, accumulate);
        }
        BranchGradient {
            d_biased: d_delta.shallow_clone(),
            d_delta,
        }
    }

    /// What a block's projections multiply, for this rank's tokens: the norm of the residual stream, or that itself where no
    /// norm is before the block; and the norm's `rstd`.
    pub(super) fn block_input(
        &self,
        x: &Tensor,
        norm: Option<&Tensor>,
    ) -> (Tensor, Option<Tensor>) {
        match norm {
            Some(norm) => {
                let (y, rstd) = rms_norm::forward(x, norm, self.norm, self.matmul);
                (y, Some(rstd))
            }
            None => (x.to_kind(self.matmul), None),
        }
    }

    /// [`Self::block_input`] once more, for all tokens.
    pub(super) fn block_input_again(
        &self,
        x: &Tensor,
        norm: Option<&Tensor>,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let (input, _) = self.block_input(x, norm);
        Ok(tp.gather_tokens(&input)?)
    }

    /// From the gradient of a block's input, and that which passed the block, to that of the residual stream before it.
    #[expect(
        clippy::too_many_arguments,
        reason = "a norm with its gradient, and what it is of"
    )]
    pub(super) fn block_input_backward(
        &self,
        d_input: &Tensor,
        x: &Tensor,
        norm: &Option<Tensor>,
        d_norm: Option<&Tensor>,
        rstd: Option<&Tensor>,
        d_out: &Tensor,
        accumulate: Accumulate,
    ) -> Tensor {
        let (Some(norm), Some(rstd)) = (norm, rstd) else {
            return d_out + d_input.to_kind(d_out.kind());
        };
        let (d_x, d_weight) = rms_norm::backward_residual(d_input, x, norm, rstd, self.norm, d_out);
        if let Some(d_norm) = d_norm {
            linear::store(d_norm, &d_weight, accumulate);
        }
        d_x
    }
}

/// `residual + scale * (delta (+ bias))` in the kind of the residual stream.
fn add_residual(residual: &Tensor, delta: Tensor, scale: f64, bias: Option<&Tensor>) -> Tensor {
    let kind: Kind = residual.kind();
    let delta = delta.to_kind(kind);
    match (bias, scale) {
        (None, 1.0) => residual + delta,
        (Some(bias), 1.0) => residual + delta + bias.to_kind(kind),
        (None, scale) => residual + delta * scale,
        (Some(bias), scale) => residual + (delta + bias.to_kind(kind)) * scale,
    }
}
