//! The second block of a layer: norm, then a gated MLP (gate|up column-parallel, down row-parallel) or a mixture of experts.

use tandem_tensor::experts::Balance;
use tandem_tensor::glu::{self, Activation};
use tandem_tensor::{Accumulate, Tensor, linear};

use super::DecoderLayer;
use super::experts::{self, ExpertLoad, ExpertsBackward, ExpertsSaved};
use super::residual::BranchGradient;
use crate::error::ModelError;
use crate::tensors::{DenseTensors, ExpertsTensors, LayerTensors, MlpTensors};
use crate::tp_context::TpContext;

/// What the block's backward needs.
#[derive(Debug)]
pub(super) struct MlpSaved {
    /// Of the norm before the block, where there is one.
    rstd: Option<Tensor>,
    /// What the block computes from, for all tokens, where it is not computed again.
    input: Option<Tensor>,
    computed: Computed,
}

#[derive(Debug)]
enum Computed {
    Dense(DenseSaved),
    Experts(ExpertsSaved),
}

#[derive(Debug)]
struct DenseSaved {
    gate_up: Tensor,
    /// What the down projection multiplies, where it is not computed again.
    product: Option<Tensor>,
}

/// Gradients on their way from the input's to the weights'.
enum Pending<'a> {
    Dense(&'a DenseTensors, DenseBackward),
    Experts(&'a ExpertsTensors, ExpertsBackward),
}

struct DenseBackward {
    /// What the gradient of the down projection is the product of, until it is.
    of_down: Option<(Tensor, Tensor)>,
    d_gate_up: Tensor,
}

impl MlpSaved {
    /// What the experts got of the tokens that count, where the block is a mixture.
    pub(super) fn load(&self, counted: &[bool]) -> Option<ExpertLoad> {
        match &self.computed {
            Computed::Dense(_) => None,
            Computed::Experts(saved) => Some(saved.load(counted)),
        }
    }
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
        let (partial, computed) = match (&weights.mlp, &self.dims.experts) {
            (MlpTensors::Experts(weights), Some(dims)) => {
                let activation = self.activation;
                let (partial, saved) =
                    experts::forward(weights, &input, dims.rule, activation, keeps_all);
                (partial, Computed::Experts(saved))
            }
            (MlpTensors::Dense(weights), _) => {
                let (partial, saved) = weights.forward(&input, self.activation, keeps_all);
                (partial, Computed::Dense(saved))
            }
            (MlpTensors::Experts(_), None) => {
                unreachable!("tensors are viewed by their layer's dims")
            }
        };
        let saved = MlpSaved {
            rstd,
            input: keeps_all.then_some(input),
            computed,
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
        balance: Option<Balance<'_>>,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        if let Some(d_bias) = gradients.mlp.bias() {
            linear::backward_bias(d_bias, &d_branch.d_biased, accumulate);
        }
        let d_branch = tp.gather_tokens(&d_branch.d_delta)?;
        let activation = self.activation;
        let (d_input, mut pending) = match (saved.computed, &weights.mlp, &gradients.mlp) {
            (Computed::Dense(saved), MlpTensors::Dense(weights), MlpTensors::Dense(gradients)) => {
                let (d_input, rest) = saved.backward_input(weights, d_branch, activation);
                (d_input, Pending::Dense(gradients, rest))
            }
            (
                Computed::Experts(saved),
                MlpTensors::Experts(weights),
                MlpTensors::Experts(gradients),
            ) => {
                let (d_input, rest) = saved.backward_input(weights, &d_branch, activation, balance);
                (d_input, Pending::Experts(gradients, rest))
            }
            _ => unreachable!("weights, gradients and what is saved are of one layer"),
        };

        // The sum over the row runs while the weight gradients are computed.
        let d_input = tp.start_reduce_tokens(d_input)?;
        pending.without_input(accumulate);
        let norm = &weights.norm_before_mlp;
        let input = match saved.input {
            Some(input) => input,
            None => self.block_input_again(x, norm.as_ref(), tp)?,
        };
        pending.with_input(&input, accumulate);
        let d_input = d_input.wait()?;

        let (d_norm, rstd) = (&gradients.norm_before_mlp, saved.rstd.as_ref());
        Ok(self.block_input_backward(&d_input, x, norm, d_norm, rstd, &d_out, accumulate))
    }
}

impl DenseTensors {
    fn forward(
        &self,
        input: &Tensor,
        activation: Activation,
        keeps_all: bool,
    ) -> (Tensor, DenseSaved) {
        let gate_up = linear::forward(input, &self.gate_up_weight, self.gate_up_bias.as_ref());
        let product = glu::forward(activation, &gate_up);
        let partial = linear::forward(&product, &self.down_weight, None);
        let saved = DenseSaved {
            gate_up,
            product: keeps_all.then_some(product),
        };
        (partial, saved)
    }
}

impl DenseSaved {
    fn backward_input(
        self,
        weights: &DenseTensors,
        d_branch: Tensor,
        activation: Activation,
    ) -> (Tensor, DenseBackward) {
        let d_product = linear::backward_input(&d_branch, &weights.down_weight);
        let (product, d_gate_up) = match self.product {
            Some(product) => {
                let d_gate_up = glu::backward(activation, &d_product, &self.gate_up);
                (product, d_gate_up)
            }
            None => glu::forward_and_backward(activation, &d_product, &self.gate_up),
        };
        let d_input = linear::backward_input(&d_gate_up, &weights.gate_up_weight);
        let rest = DenseBackward {
            of_down: Some((d_branch, product)),
            d_gate_up,
        };
        (d_input, rest)
    }
}

impl Pending<'_> {
    /// The gradients for which the block's input, which may have to be computed again, is not needed.
    fn without_input(&mut self, accumulate: Accumulate) {
        if let Self::Dense(gradients, rest) = self
            && let Some((d_branch, product)) = rest.of_down.take()
        {
            linear::backward_weight(&gradients.down_weight, &d_branch, &product, accumulate);
        }
    }

    /// The others.
    fn with_input(self, input: &Tensor, accumulate: Accumulate) {
        match self {
            Self::Dense(gradients, DenseBackward { d_gate_up, .. }) => {
                let d_weight = &gradients.gate_up_weight;
                linear::backward_weight(d_weight, &d_gate_up, input, accumulate);
                if let Some(d_bias) = &gradients.gate_up_bias {
                    linear::backward_bias(d_bias, &d_gate_up, accumulate);
                }
            }
            Self::Experts(gradients, rest) => rest.weights(gradients, input, accumulate),
        }
    }
}
