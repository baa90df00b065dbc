//! A mixture of experts in the place of an MLP: a router, and gated MLPs of which each token sees a few.
//!
//! Each expert is cut over the row as an MLP is: gate|up by columns, down by rows. The router is whole on every rank and sees
//! all tokens, so that all ranks choose alike; its gradient comes from this rank's columns of the experts only, and is one
//! part of a sum over the row.
//!
//! Or experts are whole, and spread over ranks ([`ExpertPeers`]). Then each rank of the row routes its share of the row's tokens,
//! and the router's gradient is one part of a sum over the row all the same.

mod dispatch;

use tandem_tensor::experts::{self, Balance, Counted, Routing, Rule, products};
use tandem_tensor::glu::{self, Activation};
use tandem_tensor::{Accumulate, Kind, Tensor, linear};

use super::LayerAccumulate;
use crate::error::TpError;
use crate::expert_peers::ExpertPeers;
use crate::pending_tensor::PendingTensor;
use crate::tensors::ExpertsTensors;
use dispatch::Dispatch;

/// What the experts' backward needs.
#[derive(Debug)]
pub(super) struct ExpertsSaved {
    routing: Routing,
    dispatch: Dispatch,
    /// The weight of each row that this rank's experts compute; as all that follows, sorted by expert.
    factors: Tensor,
    /// These rows `[rows, hidden]`, where they came from other ranks. Otherwise they are there once more when they are needed.
    rows: Option<Tensor>,
    /// `[rows, 2 * intermediate]`
    gate_up: Tensor,
    /// What the down projections multiply before it is weighted, where it is not computed again.
    product: Option<Tensor>,
}

/// Gradients on their way from this rank's experts to the tokens that their rows are of.
pub(super) struct ExpertsReturning {
    routing: Routing,
    /// Of the rows' weights.
    d_factors: Box<dyn PendingTensor>,
    /// Of the rows, sorted.
    d_sorted: Box<dyn PendingTensor>,
    /// The rows, where they came from other ranks.
    came: Option<Tensor>,
    experts: OfExperts,
}

/// Gradients on their way from the input's to the weights'.
pub(super) struct ExpertsBackward {
    routing: Routing,
    d_logits: Tensor,
    /// Until they are computed.
    experts: Option<OfExperts>,
}

/// What the gradients of the experts' weights are products of.
struct OfExperts {
    dispatch: Dispatch,
    d_rows: Tensor,
    d_gate_up: Tensor,
    /// What the down projections multiplied.
    weighted: Tensor,
}

/// This rank's part of the experts' output for all tokens, `[tokens, hidden]`, or, where experts are spread over `peers`, all of it for
/// its tokens; `normed` is the block's input.
///
/// A row is weighted before the down projection, which is linear, so that the weight's gradient needs no output of it.
pub(super) fn forward(
    weights: &ExpertsTensors,
    normed: &Tensor,
    rule: Rule,
    activation: Activation,
    keeps_all: bool,
    peers: Option<&dyn ExpertPeers>,
) -> Result<(Tensor, ExpertsSaved), TpError> {
    let logits = linear::forward(&normed.to_kind(Kind::Float), &weights.router, None);
    // Of rows that go to other ranks, the host must know how many.
    let stays =
        peers.is_none() && products::stay_on_device(normed, &[&weights.gate_up, &weights.down]);
    let routing = match stays {
        true => Routing::on_device(&logits, rule),
        false => Routing::new(&logits, rule),
    };
    let dispatch = Dispatch::new(&routing, peers)?;
    let rows = dispatch.send(experts::gather(normed, &routing), peers)?;
    let factors = dispatch.send(routing.factors().unsqueeze(1), peers)?;
    let factors = factors.view([-1]);
    let gate_up = products::forward(&rows, &weights.gate_up, &dispatch.groups);
    // What came from other ranks would have to come again.
    let rows = dispatch.is_over_ranks().then_some(rows);
    let product = glu::forward(activation, &gate_up);
    let weighted = experts::scale(&product, &factors);
    let out = products::forward(&weighted, &weights.down, &dispatch.groups);
    let out = dispatch.send_back(out, peers)?;
    let partial = experts::combine(&out, None, &routing);
    let saved = ExpertsSaved {
        routing,
        dispatch,
        factors,
        rows,
        gate_up,
        product: keeps_all.then_some(product),
    };
    Ok((partial, saved))
}

impl ExpertsSaved {
    /// As [`super::LayerSaved::load`].
    pub(super) fn load(&self, counted: Counted<'_>) -> Tensor {
        self.routing.load(counted)
    }

    /// The gradients of the rows that experts computed from that of the block's output, on their way back.
    pub(super) fn backward_rows(
        self,
        weights: &ExpertsTensors,
        d_branch: &Tensor,
        activation: Activation,
        peers: Option<&dyn ExpertPeers>,
    ) -> Result<ExpertsReturning, TpError> {
        let Self {
            routing,
            dispatch,
            factors,
            rows,
            gate_up,
            product,
        } = self;
        let d_rows = dispatch.send(experts::gather(d_branch, &routing), peers)?;
        let d_weighted = products::backward_input(&d_rows, &weights.down, &dispatch.groups);
        let product = product.unwrap_or_else(|| glu::forward(activation, &gate_up));
        let d_factors = experts::row_dots(&d_weighted, &product);
        let d_factors = dispatch.start_back(d_factors.unsqueeze(1), peers)?;
        let d_product = experts::scale(&d_weighted, &factors);
        drop(d_weighted);
        let d_gate_up = glu::backward(activation, &d_product, &gate_up);
        let weighted = experts::scale(&product, &factors);
        drop((d_product, gate_up, product));
        let d_sorted = products::backward_input(&d_gate_up, &weights.gate_up, &dispatch.groups);
        let d_sorted = dispatch.start_back(d_sorted, peers)?;
        Ok(ExpertsReturning {
            routing,
            d_factors,
            d_sorted,
            came: rows,
            experts: OfExperts {
                dispatch,
                d_rows,
                d_gate_up,
                weighted,
            },
        })
    }
}

impl ExpertsReturning {
    /// The gradient of the block's input; each rank of the row has a part of it, or that of its tokens. While rows are on their way
    /// from other ranks, the gradients of the experts' weights are computed, where they are wanted.
    pub(super) fn arrive(
        self,
        weights: &ExpertsTensors,
        gradients: Option<&ExpertsTensors>,
        accumulate: LayerAccumulate,
        balance: Option<Balance<'_>>,
    ) -> Result<(Tensor, ExpertsBackward), TpError> {
        let Self {
            routing,
            d_factors,
            d_sorted,
            came,
            experts,
        } = self;
        let experts = match came {
            Some(rows) => {
                if let Some(gradients) = gradients {
                    experts.weights(gradients, &rows, accumulate.experts);
                }
                None
            }
            // Nothing is on its way yet: they are computed during the sum over the row.
            None => Some(experts),
        };
        let d_factors = d_factors.wait()?;
        let d_logits = routing.backward(&d_factors.view([-1]), balance);
        let through_router = linear::backward_input(&d_logits, &weights.router);
        let d_normed = experts::combine(&d_sorted.wait()?, Some(&through_router), &routing);
        let rest = ExpertsBackward {
            routing,
            d_logits,
            experts,
        };
        Ok((d_normed, rest))
    }
}

impl ExpertsBackward {
    /// Writes or adds the gradients of the weights that have none yet; `normed` is the block's input.
    pub(super) fn weights(
        self,
        gradients: &ExpertsTensors,
        normed: &Tensor,
        accumulate: LayerAccumulate,
    ) {
        if let Some(of_experts) = self.experts {
            let rows = experts::gather(normed, &self.routing);
            of_experts.weights(gradients, &rows, accumulate.experts);
        }
        let (normed, accumulate) = (normed.to_kind(Kind::Float), accumulate.layer);
        linear::backward_weight(&gradients.router, &self.d_logits, &normed, accumulate);
    }
}

impl OfExperts {
    /// Writes or adds the gradients of the weights of this rank's experts, which have computed `rows`.
    fn weights(self, gradients: &ExpertsTensors, rows: &Tensor, accumulate: Accumulate) {
        let groups = &self.dispatch.groups;
        let weight = products::backward_weight;
        weight(
            &gradients.down,
            &self.d_rows,
            &self.weighted,
            groups,
            accumulate,
        );
        weight(
            &gradients.gate_up,
            &self.d_gate_up,
            rows,
            groups,
            accumulate,
        );
    }
}
