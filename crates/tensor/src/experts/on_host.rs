//! The router's choice on the host.

use tandem_kernels::experts::Dispatch;
use tandem_kernels::router::{self, Rule};
use tandem_torch::Tensor;

/// What the router chose for every token.
#[derive(Debug)]
pub(super) struct Choice {
    rule: Rule,
    /// `[tokens, experts]`
    probabilities: Vec<f32>,
    /// `[tokens, top_k]`
    chosen: Vec<u32>,
    /// `[tokens, top_k]`
    weights: Vec<f32>,
    dispatch: Dispatch,
}

impl Choice {
    /// By `logits [tokens, experts]`.
    pub(super) fn new(logits: &[f32], rule: Rule) -> Self {
        let choices = logits.len() / rule.experts * rule.top_k;
        let mut probabilities = vec![0.0; logits.len()];
        let mut chosen = vec![0; choices];
        let mut weights = vec![0.0; choices];
        router::forward(logits, rule, &mut probabilities, &mut chosen, &mut weights);
        let dispatch = Dispatch::new(&chosen, rule.experts, rule.top_k);
        Self {
            rule,
            probabilities,
            chosen,
            weights,
            dispatch,
        }
    }

    /// Where rows go.
    pub(super) fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    /// The weight of each row.
    pub(super) fn factors(&self) -> Vec<f32> {
        let mut factors = vec![0.0; self.weights.len()];
        for (weight, &row) in self.weights.iter().zip(&self.dispatch.rows) {
            factors[row as usize] = *weight;
        }
        factors
    }

    /// As [`super::Routing::load`], over the tokens that are `counted`, or all where that is empty.
    pub(super) fn load(&self, counted: &[bool]) -> Tensor {
        let Rule { experts, top_k, .. } = self.rule;
        let mut load = vec![0.0; 2 * experts];
        let (chosen, sums) = load.split_at_mut(experts);
        let rows = self.probabilities.chunks_exact(experts);
        for (token, (of_token, choices)) in rows.zip(self.chosen.chunks_exact(top_k)).enumerate() {
            if counted.get(token) == Some(&false) {
                continue;
            }
            for &expert in choices {
                chosen[expert as usize] += 1.0;
            }
            for (sum, &p) in sums.iter_mut().zip(of_token) {
                *sum += f64::from(p);
            }
        }
        Tensor::from_slice(&load).view([2, experts as i64])
    }

    /// As [`super::Routing::backward`]; `d_probabilities` is empty where there is no balance.
    pub(super) fn backward(
        &self,
        of_rows: &[f32],
        d_probabilities: &[f32],
        counted: &[bool],
    ) -> Tensor {
        let rows = self.dispatch.rows.iter();
        let d_weights: Vec<f32> = rows.map(|&row| of_rows[row as usize]).collect();
        let mut d_logits = vec![0.0; self.probabilities.len()];
        router::backward(
            &d_weights,
            self.rule,
            &self.probabilities,
            &self.chosen,
            &self.weights,
            d_probabilities,
            counted,
            &mut d_logits,
        );
        Tensor::from_slice(&d_logits).view([-1, self.rule.experts as i64])
    }
}
