//! The SwiGLU block: norm, gate|up (column-parallel), down (row-parallel).

use tandem_tensor::rms_norm::Residual;
use tandem_tensor::{Accumulate, linear};
use tandem_tensor::{Tensor, rms_norm, swiglu};

use super::{DecoderLayer, add_residual};
use crate::error::ModelError;
use crate::tensors::LayerTensors;
use crate::tp_context::TpContext;

/// What the MLP's backward needs.
#[derive(Debug)]
pub(super) struct MlpSaved {
    rstd: Tensor,
    gate_up: Tensor,
    /// The norm's output for all tokens, where it is not computed again.
    normed: Option<Tensor>,
    /// What the down projection multiplies, where it is not computed again.
    product: Option<Tensor>,
}

impl DecoderLayer {
    /// The residual stream after the block; `before` is that before it, with its norm.
    pub(super) fn mlp_forward(
        &self,
        weights: &LayerTensors,
        before: &Residual,
        tp: &dyn TpContext,
        keeps_all: bool,
    ) -> Result<(Tensor, MlpSaved), ModelError> {
        let normed = tp.gather_tokens(&before.y)?;
        let gate_up = linear::forward(
            &normed,
            &weights.gate_up_weight,
            weights.gate_up_bias.as_ref(),
        );
        let product = swiglu::forward(&gate_up);
        let partial = linear::forward(&product, &weights.down_weight, None);
        let saved = MlpSaved {
            rstd: before.rstd.shallow_clone(),
            gate_up,
            normed: keeps_all.then_some(normed),
            product: keeps_all.then_some(product),
        };
        let out = tp.reduce_tokens(partial)?;
        let out = add_residual(&before.sum, out, weights.down_bias.as_ref());
        Ok((out, saved))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "weights, gradients and saved state of one block"
    )]
    pub(super) fn mlp_backward(
        &self,
        weights: &LayerTensors,
        gradients: &LayerTensors,
        accumulate: Accumulate,
        x: &Tensor,
        saved: MlpSaved,
        d_out: Tensor,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        if let Some(d_bias) = &gradients.down_bias {
            linear::backward_bias(d_bias, &d_out, accumulate);
        }
        let d_branch = tp.gather_tokens(&d_out.to_kind(self.matmul))?;
        let d_product = linear::backward_input(&d_branch, &weights.down_weight);
        let (product, d_gate_up) = match saved.product {
            Some(product) => (product, swiglu::backward(&d_product, &saved.gate_up)),
            None => swiglu::forward_and_backward(&d_product, &saved.gate_up),
        };
        let d_normed = linear::backward_input(&d_gate_up, &weights.gate_up_weight);

        // The sum over the row runs while the weight gradients are computed.
        let d_normed = tp.start_reduce_tokens(d_normed)?;
        linear::backward_weight(&gradients.down_weight, &d_branch, &product, accumulate);
        drop((product, d_product));
        let normed = match saved.normed {
            Some(normed) => normed,
            None => self.norm_again(x, &weights.post_norm, tp)?,
        };
        linear::backward_weight(&gradients.gate_up_weight, &d_gate_up, &normed, accumulate);
        if let Some(d_bias) = &gradients.gate_up_bias {
            linear::backward_bias(d_bias, &d_gate_up, accumulate);
        }
        let d_normed = d_normed.wait()?;

        let (norm, rstd) = (&weights.post_norm, &saved.rstd);
        let (d_x, d_norm) = rms_norm::backward_residual(&d_normed, x, norm, rstd, &d_out);
        linear::store(&gradients.post_norm, &d_norm, accumulate);
        Ok(d_x)
    }
}
