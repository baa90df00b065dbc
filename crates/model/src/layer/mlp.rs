//! The gated MLP: norm, gate|up (column-parallel), down (row-parallel).

use tandem_tensor::{Accumulate, Tensor, glu, linear};

use super::DecoderLayer;
use super::residual::BranchGradient;
use crate::error::ModelError;
use crate::tensors::LayerTensors;
use crate::tp_context::TpContext;

/// What the MLP's backward needs.
#[derive(Debug)]
pub(super) struct MlpSaved {
    /// Of the norm before the block, where there is one.
    rstd: Option<Tensor>,
    gate_up: Tensor,
    /// What gate|up were projected from, for all tokens, where it is not computed again.
    input: Option<Tensor>,
    /// What the down projection multiplies, where it is not computed again.
    product: Option<Tensor>,
}

impl DecoderLayer {
    /// What the block adds to the residual stream `x`, less the bias of the down projection. `normed` is the norm of `x` with
    /// its `rstd`, where there is a norm before the block.
    pub(super) fn mlp_forward(
        &self,
        weights: &LayerTensors,
        x: &Tensor,
        normed: Option<(Tensor, Tensor)>,
        tp: &dyn TpContext,
        keeps_all: bool,
    ) -> Result<(Tensor, MlpSaved), ModelError> {
        let (input, rstd) = match normed {
            Some((y, rstd)) => (y, Some(rstd)),
            None => (x.to_kind(self.matmul), None),
        };
        let input = tp.gather_tokens(&input)?;
        let gate_up = linear::forward(
            &input,
            &weights.gate_up_weight,
            weights.gate_up_bias.as_ref(),
        );
        let product = glu::forward(self.activation, &gate_up);
        let partial = linear::forward(&product, &weights.down_weight, None);
        let saved = MlpSaved {
            rstd,
            gate_up,
            input: keeps_all.then_some(input),
            product: keeps_all.then_some(product),
        };
        Ok((tp.reduce_tokens(partial)?, saved))
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
        d_branch: BranchGradient,
        d_out: Tensor,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        if let Some(d_bias) = &gradients.down_bias {
            linear::backward_bias(d_bias, &d_branch.d_biased, accumulate);
        }
        let d_branch = tp.gather_tokens(&d_branch.d_delta)?;
        let d_product = linear::backward_input(&d_branch, &weights.down_weight);
        let activation = self.activation;
        let (product, d_gate_up) = match saved.product {
            Some(product) => {
                let d_gate_up = glu::backward(activation, &d_product, &saved.gate_up);
                (product, d_gate_up)
            }
            None => glu::forward_and_backward(activation, &d_product, &saved.gate_up),
        };
        let d_input = linear::backward_input(&d_gate_up, &weights.gate_up_weight);

        // The sum over the row runs while the weight gradients are computed.
        let d_input = tp.start_reduce_tokens(d_input)?;
        linear::backward_weight(&gradients.down_weight, &d_branch, &product, accumulate);
        drop((product, d_product));
        let norm = &weights.norm_before_mlp;
        let input = match saved.input {
            Some(input) => input,
            None => self.block_input_again(x, norm.as_ref(), tp)?,
        };
        linear::backward_weight(&gradients.gate_up_weight, &d_gate_up, &input, accumulate);
        if let Some(d_bias) = &gradients.gate_up_bias {
            linear::backward_bias(d_bias, &d_gate_up, accumulate);
        }
        let d_input = d_input.wait()?;

        let (d_norm, rstd) = (&gradients.norm_before_mlp, saved.rstd.as_ref());
        Ok(self.block_input_backward(&d_input, x, norm, d_norm, rstd, &d_out, accumulate))
    }
}
