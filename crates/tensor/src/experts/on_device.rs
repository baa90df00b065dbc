//! The router's choice by a device's operators. Every size is known beforehand, so the host waits for nothing, and nothing is copied
//! from it.

use tandem_kernels::router::Rule;
use tandem_torch::{Kind, Tensor};

/// What the router chose for every token.
#[derive(Debug)]
pub(super) struct Choice {
    /// fp32 `[tokens, experts]`
    probabilities: Tensor,
    /// i64 `[tokens, top_k]`
    chosen: Tensor,
    /// fp32 `[tokens, top_k]`
    weights: Tensor,
    /// What the weights were divided by, fp32 `[tokens, 1]`, where they were.
    total: Option<Tensor>,
    /// fp64 `[experts]`
    counts: Tensor,
    /// i32 `[experts]`
    ends: Tensor,
}

/// Where rows go, as in [`super::Routing`].
pub(super) struct Places {
    pub(super) tokens: Tensor,
    pub(super) rows: Tensor,
    pub(super) factors: Tensor,
}

impl Choice {
    /// By fp32 `logits [tokens, experts]`.
    pub(super) fn new(logits: &Tensor, rule: Rule) -> (Self, Places) {
        let top_k = rule.top_k as i64;
        let probabilities = logits.softmax(-1, Kind::Float);
        // Not by `topk`, which takes any of equals: here the first is taken, as on the host, so that all ranks choose alike.
        let (largest, experts) = probabilities.sort(-1, true);
        let largest = largest.narrow(1, 0, top_k);
        let chosen = experts.narrow(1, 0, top_k).contiguous();
        let total = rule
            .normalise
            .then(|| largest.sum_dims(&[1], true, Kind::Float));
        let weights = match &total {
            Some(total) => largest / total,
            None => largest.contiguous(),
        };

        let counts = hits(&chosen, rule.experts).sum_dims(&[0], false, Kind::Double);
        let ends = counts.cumsum(0, Kind::Int);
        // The choice that each row is: those of an expert stay in the order of the tokens.
        let (_, choices) = chosen.view([-1]).sort(0, false);
        let options = (Kind::Int64, choices.device());
        let from_one = Tensor::ones(choices.size(), options).cumsum(0, Kind::Int64);
        let rows = Tensor::full(choices.size(), -1, options);
        rows.scatter_add_(0, &choices, &from_one);
        let places = Places {
            tokens: choices.floor_divide(top_k),
            rows,
            factors: weights.view([-1]).index_select(0, &choices),
        };
        let choice = Self {
            probabilities,
            chosen,
            weights,
            total,
            counts,
            ends,
        };
        (choice, places)
    }

    /// Where each expert's rows end, i32 `[experts]`.
    pub(super) fn ends(&self) -> &Tensor {
        &self.ends
    }

    /// As [`super::Routing::load`], of tokens that count by fp32 `counted [tokens]`, or of all.
    pub(super) fn load(&self, counted: Option<&Tensor>) -> Tensor {
        let sum = |of_tokens: &Tensor| of_tokens.sum_dims(&[0], false, Kind::Double);
        let (counts, sums) = match counted.map(|counted| counted.unsqueeze(1)) {
            None => (self.counts.shallow_clone(), sum(&self.probabilities)),
            Some(counted) => {
                let hits = hits(&self.chosen, self.probabilities.size()[1] as usize);
                (
                    sum(&(hits * &counted)),
                    sum(&(&self.probabilities * counted)),
                )
            }
        };
        Tensor::stack(&[counts, sums], 0)
    }

    /// The gradient of the logits from that of the weights, `[tokens, top_k]`, and of a balance: its derivatives `[experts]`, for the
    /// tokens that count, or for all. The formula is [`tandem_kernels::router::backward`]'s.
    pub(super) fn backward(
        &self,
        d_weights: &Tensor,
        balance: Option<(&Tensor, Option<Tensor>)>,
    ) -> Tensor {
        let d_chosen = match &self.total {
            Some(total) => {
                let taken_back = (d_weights * &self.weights).sum_dims(&[1], true, Kind::Float);
                (d_weights - taken_back) / total
            }
            None => d_weights.shallow_clone(),
        };
        let p = &self.probabilities;
        let d = p.zeros_like();
        match balance {
            Some((of_balance, None)) => d.copy_(&of_balance.unsqueeze(0)),
            Some((of_balance, Some(counted))) => {
                d.copy_(&(counted.unsqueeze(1) * of_balance.unsqueeze(0)));
            }
            None => {}
        }
        d.scatter_add_(1, &self.chosen, &d_chosen);
        let mean = (&d * p).sum_dims(&[1], true, Kind::Float);
        p * (d - mean)
    }
}

/// fp32 `[tokens, experts]`: 1 where a token chose the expert. A token chooses each once, so nothing is added to the same place twice.
fn hits(chosen: &Tensor, experts: usize) -> Tensor {
    let options = (Kind::Float, chosen.device());
    let hits = Tensor::zeros([chosen.size()[0], experts as i64], options);
    hits.scatter_add_(1, chosen, &Tensor::ones(chosen.size(), options));
    hits
}
