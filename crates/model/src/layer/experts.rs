//! A mixture of experts in the place of an MLP: a router, and gated MLPs of which each token sees a few.
//!
//! Each expert is cut over the row as an MLP is: gate|up by columns, down by rows. The router is whole on every rank and sees
//! all tokens, so that all ranks choose alike; its gradient comes from this rank's columns of the experts only, and is one
//! part of a sum over the row.
//!
//! Or experts are whole, and spread over ranks ([`ExpertPeers`]). Then each rank of the row routes its share of the row's tokens,
//! and the router's gradient is one part of a sum over the row all the same.

mod dispatch;

use std::ops::Range;

use tandem_tensor::experts::{self, Balance, Routing, Rule};
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
    let routing = Routing::new(&logits, rule);
    let dispatch = Dispatch::new(&routing, peers)?;
    let rows = dispatch.send(experts::gather(normed, &routing), peers)?;
    let factors = dispatch.send(routing.factors().unsqueeze(1), peers)?;
    let factors = factors.view([-1]);
    let into = linear::forward_into;
    let gate_up = by_expert(&rows, &weights.gate_up, &dispatch, into, 0);
    // What came from other ranks would have to come again.
    let rows = dispatch.is_over_ranks().then_some(rows);
    let product = glu::forward(activation, &gate_up);
    let weighted = experts::scale(&product, &factors);
    let out = by_expert(&weighted, &weights.down, &dispatch, into, 0);
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

/// What the experts of a layer got of some tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertLoad {
    /// For each expert, the tokens that chose it.
    pub chosen: Vec<u64>,
    /// For each expert, the sum of its probabilities over the tokens.
    pub probabilities: Vec<f64>,
}

impl ExpertLoad {
    /// Of these tokens and those of `other`.
    pub fn add(&mut self, other: &Self) {
        for (sum, chosen) in self.chosen.iter_mut().zip(&other.chosen) {
            *sum += chosen;
        }
        for (sum, p) in self.probabilities.iter_mut().zip(&other.probabilities) {
            *sum += p;
        }
    }

    /// As one list that can be added: the counts, then the sums.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        let counts = self.chosen.iter().map(|&chosen| chosen as f64);
        counts.chain(self.probabilities.iter().copied())
    }

    /// From [`Self::values`].
    pub fn from_values(values: &[f64]) -> Self {
        let (counts, probabilities) = values.split_at(values.len() / 2);
        Self {
            chosen: counts.iter().map(|&count| count as u64).collect(),
            probabilities: probabilities.to_vec(),
        }
    }
}

impl ExpertsSaved {
    /// What the experts got of the tokens that are `counted`; of all where that is empty.
    pub(super) fn load(&self, counted: &[bool]) -> ExpertLoad {
        let (chosen, probabilities) = self.routing.load(counted);
        ExpertLoad {
            chosen,
            probabilities,
        }
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
        let into = linear::backward_input_into;
        let d_weighted = by_expert(&d_rows, &weights.down, &dispatch, into, 1);
        let product = product.unwrap_or_else(|| glu::forward(activation, &gate_up));
        let d_factors = experts::row_dots(&d_weighted, &product);
        let d_factors = dispatch.start_back(d_factors.unsqueeze(1), peers)?;
        let d_product = experts::scale(&d_weighted, &factors);
        drop(d_weighted);
        let d_gate_up = glu::backward(activation, &d_product, &gate_up);
        let weighted = experts::scale(&product, &factors);
        drop((d_product, gate_up, product));
        let d_sorted = by_expert(&d_gate_up, &weights.gate_up, &dispatch, into, 1);
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
        for (expert, range) in self.dispatch.experts.iter().enumerate() {
            let (down, gate_up) = (&gradients.down[expert], &gradients.gate_up[expert]);
            if range.is_empty() {
                // Nobody's gradient is zero, not what happens to be in the buffer.
                if accumulate == Accumulate::First {
                    down.zero_();
                    gate_up.zero_();
                }
                continue;
            }
            let part = |x: &Tensor| part(x, range);
            linear::backward_weight(down, &part(&self.d_rows), &part(&self.weighted), accumulate);
            linear::backward_weight(gate_up, &part(&self.d_gate_up), &part(rows), accumulate);
        }
    }
}

/// One product for each expert's rows of `x`, into one tensor; `dimension` is that of the weights which the result is as wide as.
fn by_expert(
    x: &Tensor,
    weights: &[Tensor],
    dispatch: &Dispatch,
    product: impl Fn(&Tensor, &Tensor, &Tensor),
    dimension: usize,
) -> Tensor {
    let width = weights.first().map_or(0, |weight| weight.size()[dimension]);
    let out = Tensor::empty([x.size()[0], width], (x.kind(), x.device()));
    for (range, weight) in dispatch.experts.iter().zip(weights) {
        if !range.is_empty() {
            product(&part(&out, range), &part(x, range), weight);
        }
    }
    out
}

fn part(x: &Tensor, rows: &Range<usize>) -> Tensor {
    x.narrow(0, rows.start as i64, rows.len() as i64)
}
