//! The second block of a layer: norm, then a gated MLP (gate|up column-parallel, down row-parallel) or a mixture of experts.

use tandem_tensor::experts::{Balance, Counted};
use tandem_tensor::glu::{self, Activation};
use tandem_tensor::{Accumulate, Tensor, linear};

use super::adapter::{Gradients, Hidden, HiddenGradient};
use super::experts::{self, ExpertsBackward, ExpertsSaved};
use super::residual::BranchGradient;
use super::{DecoderLayer, LayerAccumulate};
use crate::adapter::Place;
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
    Experts(Box<ExpertsSaved>),
}

#[derive(Debug)]
struct DenseSaved {
    gate_up: Tensor,
    /// What the down projection multiplies, where it is not computed again.
    product: Option<Tensor>,
    /// Of the adapters of gate|up.
    hidden_gate_up: Option<Hidden>,
    /// Of the down projection's.
    hidden_down: Option<Hidden>,
}

/// Gradients on their way from the input's to the weights'.
enum Pending<'a> {
    Dense(Option<&'a DenseTensors>, DenseBackward),
    Experts(Option<&'a ExpertsTensors>, Box<ExpertsBackward>),
}

struct DenseBackward {
    /// What the gradient of the down projection is the product of, until it is.
    of_down: Option<(Tensor, Tensor, OnTheWay)>,
    d_gate_up: Tensor,
    of_gate_up: OnTheWay,
}

/// What adapters made of their input, and its gradient.
type OnTheWay = (Option<Hidden>, Option<HiddenGradient>);

impl MlpSaved {
    /// What the experts got of the tokens that count, where the block is a mixture.
    pub(super) fn load(&self, counted: Counted<'_>) -> Option<Tensor> {
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
                let (partial, saved) = experts::forward(
                    weights,
                    &input,
                    dims.rule,
                    self.activation,
                    keeps_all,
                    tp.expert_peers(),
                )?;
                (partial, Computed::Experts(Box::new(saved)))
            }
            (MlpTensors::Dense(dense), _) => {
                let (partial, saved) = dense.forward(weights, &input, self.activation, keeps_all);
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
        gradients: Gradients<'_>,
        accumulate: LayerAccumulate,
        x: &Tensor,
        saved: MlpSaved,
        d_branch: BranchGradient,
        d_out: Tensor,
        balance: Option<Balance<'_>>,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let own = gradients.weights();
        if let Some(d_bias) = own.and_then(|own| own.mlp.bias()) {
            linear::backward_bias(d_bias, &d_branch.d_biased, accumulate.layer);
        }
        let d_branch = tp.gather_tokens(&d_branch.d_delta)?;
        let activation = self.activation;
        let (d_input, mut pending) = match (saved.computed, &weights.mlp) {
            (Computed::Dense(saved), MlpTensors::Dense(dense)) => {
                let needs_product = gradients.need_input(Place::Down);
                let (d_input, rest) =
                    saved.backward_input(dense, weights, d_branch, activation, needs_product);
                let own = own.and_then(|own| own.mlp.dense());
                (d_input, Pending::Dense(own, rest))
            }
            (Computed::Experts(saved), MlpTensors::Experts(experts)) => {
                let peers = tp.expert_peers();
                let returning = saved.backward_rows(experts, &d_branch, activation, peers)?;
                let own = own.and_then(|own| own.mlp.experts());
                let (d_input, rest) = returning.arrive(experts, own, accumulate, balance)?;
                (d_input, Pending::Experts(own, Box::new(rest)))
            }
            _ => unreachable!("weights and what is saved are of one layer"),
        };

        // The sum over the row runs while the weight gradients are computed.
        let d_input = tp.start_reduce_tokens(d_input)?;
        pending.without_input(weights, gradients, accumulate.layer);
        let norm = &weights.norm_before_mlp;
        if gradients.need_input(Place::GateUp) {
            let input = match saved.input {
                Some(input) => input,
                None => self.block_input_again(x, norm.as_ref(), tp)?,
            };
            pending.with_input(weights, gradients, &input, accumulate);
        }
        let d_input = d_input.wait()?;

        let d_norm = own.and_then(|own| own.norm_before_mlp.as_ref());
        let rstd = saved.rstd.as_ref();
        let accumulate = accumulate.layer;
        Ok(self.block_input_backward(&d_input, x, norm, d_norm, rstd, &d_out, accumulate))
    }
}

impl DenseTensors {
    fn forward(
        &self,
        layer: &LayerTensors,
        input: &Tensor,
        activation: Activation,
        keeps_all: bool,
    ) -> (Tensor, DenseSaved) {
        let (weight, bias) = (&self.gate_up_weight, self.gate_up_bias.as_ref());
        let (gate_up, hidden_gate_up) = layer.adapted_forward(Place::GateUp, input, weight, bias);
        let product = glu::forward(activation, &gate_up);
        let (partial, hidden_down) =
            layer.adapted_forward(Place::Down, &product, &self.down_weight, None);
        let saved = DenseSaved {
            gate_up,
            product: keeps_all.then_some(product),
            hidden_gate_up,
            hidden_down,
        };
        (partial, saved)
    }
}

impl DenseSaved {
    fn backward_input(
        self,
        weights: &DenseTensors,
        layer: &LayerTensors,
        d_branch: Tensor,
        activation: Activation,
        needs_product: bool,
    ) -> (Tensor, DenseBackward) {
        let (d_product, d_hidden_down) =
            layer.adapted_backward_input(Place::Down, &d_branch, &weights.down_weight);
        let (product, d_gate_up) = match self.product {
            None if needs_product => {
                let both = glu::forward_and_backward(activation, &d_product, &self.gate_up);
                (Some(both.0), both.1)
            }
            kept => {
                let d_gate_up = glu::backward(activation, &d_product, &self.gate_up);
                (kept, d_gate_up)
            }
        };
        let (d_input, d_hidden_gate_up) =
            layer.adapted_backward_input(Place::GateUp, &d_gate_up, &weights.gate_up_weight);
        let of_down = (self.hidden_down, d_hidden_down);
        let rest = DenseBackward {
            of_down: product.map(|product| (d_branch, product, of_down)),
            d_gate_up,
            of_gate_up: (self.hidden_gate_up, d_hidden_gate_up),
        };
        (d_input, rest)
    }
}

impl Pending<'_> {
    /// The gradients for which the block's input, which may have to be computed again, is not needed.
    fn without_input(
        &mut self,
        layer: &LayerTensors,
        gradients: Gradients<'_>,
        accumulate: Accumulate,
    ) {
        if let Self::Dense(own, rest) = self
            && let Some((d_branch, product, on_the_way)) = rest.of_down.take()
        {
            if let Some(own) = own {
                linear::backward_weight(&own.down_weight, &d_branch, &product, accumulate);
            }
            let place = Place::Down;
            layer.adapters_backward(
                place, gradients, &d_branch, on_the_way, &product, accumulate,
            );
        }
    }

    /// The others.
    fn with_input(
        self,
        layer: &LayerTensors,
        gradients: Gradients<'_>,
        input: &Tensor,
        accumulate: LayerAccumulate,
    ) {
        match self {
            Self::Dense(own, rest) => {
                let accumulate = accumulate.layer;
                let (d_gate_up, on_the_way) = (&rest.d_gate_up, rest.of_gate_up);
                if let Some(own) = own {
                    linear::backward_weight(&own.gate_up_weight, d_gate_up, input, accumulate);
                    if let Some(d_bias) = &own.gate_up_bias {
                        linear::backward_bias(d_bias, d_gate_up, accumulate);
                    }
                }
                let place = Place::GateUp;
                layer.adapters_backward(place, gradients, d_gate_up, on_the_way, input, accumulate);
            }
            Self::Experts(Some(own), rest) => rest.weights(own, input, accumulate),
            // Frozen, and without adapters.
            Self::Experts(None, _) => {}
        }
    }
}
