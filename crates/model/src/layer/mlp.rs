//! The SwiGLU block: norm, gate|up (column-parallel), down (row-parallel).

use tandem_tensor::linear::{self, Accumulate};
use tandem_tensor::{Tensor, rms_norm, swiglu};

use super::{DecoderLayer, add_residual};
use crate::error::ModelError;
use crate::tensors::LayerTensors;
use crate::tp_context::TpContext;

/// What the MLP's backward needs; the norm's output and the SwiGLU product are cheap and computed again.
#[derive(Debug)]
pub(super) struct MlpSaved {
    rstd: Tensor,
    gate_up: Tensor,
}

impl DecoderLayer {
    /// The residual stream after the block. `x` is that before it, `normed` and `rstd` are its norm.
    pub(super) fn mlp_forward(
        &self,
        weights: &LayerTensors,
        x: &Tensor,
        normed: &Tensor,
        rstd: Tensor,
        tp: &dyn TpContext,
    ) -> Result<(Tensor, MlpSaved), ModelError> {
        let normed = tp.gather_tokens(normed)?;
        let gate_up = linear::forward(
            &normed,
            &weights.gate_up_weight,
            weights.gate_up_bias.as_ref(),
        );
        let partial = linear::forward(&swiglu::forward(&gate_up), &weights.down_weight, None);
        let out = tp.reduce_tokens(partial)?;
        let out = add_residual(x, out, weights.down_bias.as_ref());
        Ok((out, MlpSaved { rstd, gate_up }))
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
        let (product, d_gate_up) = swiglu::forward_and_backward(&d_product, &saved.gate_up);
        let d_normed = linear::backward_input(&d_gate_up, &weights.gate_up_weight);

        // The sum over the row runs while the weight gradients are computed.
        let d_normed = tp.start_reduce_tokens(d_normed)?;
        linear::backward_weight(&gradients.down_weight, &d_branch, &product, accumulate);
        drop((product, d_product));
        let (normed, _) = rms_norm::forward(x, &weights.post_norm, self.eps, self.matmul);
        let normed = tp.gather_tokens(&normed)?;
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
