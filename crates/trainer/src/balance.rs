//! What the experts of a mixture get, and the auxiliary loss that keeps them in balance (Switch Transformers, arXiv 2101.03961), as
//! transformers computes it, over the whole global batch.
//!
//! With `E` experts and `N` pairs of a mixture's layer and a real token, `f_e` is the number of pairs that chose expert `e` over
//! `N`, `P_e` the sum of its probabilities over `N`, and the loss is `E * sum over e of f_e * P_e`. The layers are pooled before
//! the product. `f` counts as a constant for the gradient, which is therefore the same for every token's probabilities,
//! `E * f_e / N`; but it must be known before the first backward pass. With several micro-batches that takes a forward pass of all
//! of them ahead. On a device, all of this stays there until the step's end: what experts got is read beside the loss.

use serde::{Deserialize, Serialize};
use tandem_comm::ReduceOp;
use tandem_model::LayerSaved;
use tandem_tensor::experts::Counted;
use tandem_tensor::{Kind, Tensor};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::global_batch::Count;

/// What experts got in a step, and what follows.
pub(crate) struct Balance {
    /// The coefficient of the auxiliary loss; 0 is none.
    coefficient: f64,
    /// Real tokens of the global batch.
    tokens: Count,
    /// Fp64 `[mixtures, 2, experts]`: of each layer with experts what [`LayerSaved::load`] says, of this rank's tokens until it is
    /// [agreed](Self::agree) on. `None` where there is no such layer.
    loads: Option<Tensor>,
    is_agreed: bool,
    /// The derivative of the loss for each expert's probability, this rank's part of it: fp32 `[experts]`.
    d_probabilities: Option<Tensor>,
}

/// What a step reports about a model's experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExpertReport {
    /// The auxiliary loss, before its coefficient; also where it is not part of the loss.
    pub aux_loss: f64,
    /// What of it is in the loss.
    #[serde(skip)]
    pub added: f64,
    /// For each layer with experts and each of its experts: the tokens that chose it.
    #[serde(skip)]
    pub chosen: Vec<Vec<u64>>,
    /// For each layer with experts, in their order: the tokens of the expert with the most over the mean of all. 1 is balance.
    pub max_over_mean: Vec<f64>,
    /// Experts of all layers that got no token.
    pub idle: usize,
}

impl Balance {
    /// For a step over `tokens` real tokens of the global batch.
    pub(crate) fn new(engine: &Engine, tokens: &Count) -> Self {
        let experts = engine.config.experts.as_ref();
        Self {
            coefficient: experts.and_then(|experts| experts.balance).unwrap_or(0.0),
            tokens: tokens.shallow_clone(),
            loads: None,
            is_agreed: false,
            d_probabilities: None,
        }
    }

    /// Whether the load of `micro_batches` micro-batches must be known before the first backward pass takes place.
    pub(crate) fn looks_ahead(&self, micro_batches: usize) -> bool {
        self.coefficient > 0.0 && micro_batches > 1
    }

    /// Adds what a micro-batch's experts got, unless that is known. Where there is a loss, all of the batch is known then.
    pub(crate) fn after_forward(
        &mut self,
        engine: &Engine,
        saved: &[LayerSaved],
    ) -> Result<(), TrainError> {
        if self.is_agreed {
            return Ok(());
        }
        self.add(saved);
        match self.coefficient {
            0.0 => Ok(()),
            _ => self.agree(engine),
        }
    }

    /// The derivative of this rank's part of the loss, for a layer's backward, where these of the tokens that its router sees are
    /// `counted`.
    pub(crate) fn gradient<'a>(
        &'a self,
        counted: Counted<'a>,
    ) -> Option<tandem_tensor::experts::Balance<'a>> {
        let d_probabilities = self.d_probabilities.as_ref()?;
        Some(tandem_tensor::experts::Balance {
            d_probabilities,
            counted,
        })
    }

    /// What is to be read at the end of the step, when it is [agreed](Self::agree) on: fp64 `[numbers]`.
    pub(crate) fn to_read(&self) -> Option<Tensor> {
        let loads = self.loads.as_ref()?.view([-1]);
        Some(match &self.tokens {
            Count::Known(_) => loads,
            Count::Unread(tokens) => {
                Tensor::cat(&[loads, tokens.view([1]).to_kind(Kind::Double)], 0)
            }
        })
    }

    /// What all ranks' experts got, from the numbers of [`Self::to_read`]; `None` where there are none.
    pub(crate) fn report(&self, read: &[f64]) -> Option<ExpertReport> {
        let &[_, _, experts] = self.loads.as_ref()?.size() else {
            return None;
        };
        let tokens = match self.tokens {
            Count::Known(tokens) => tokens,
            Count::Unread(_) => read.last().map_or(0, |tokens| *tokens as u64),
        };
        let loads = read.chunks_exact(2 * experts as usize);
        let loads: Vec<Load<'_>> = loads.map(Load::of).collect();
        let aux_loss = loss(&loads, tokens);
        let idle = loads.iter().flat_map(|load| load.chosen);
        Some(ExpertReport {
            aux_loss,
            added: self.coefficient * aux_loss,
            max_over_mean: loads.iter().map(Load::max_over_mean).collect(),
            idle: idle.filter(|chosen| **chosen == 0.0).count(),
            chosen: loads.iter().map(Load::counts).collect(),
        })
    }

    /// Adds what a micro-batch's experts got.
    pub(crate) fn add(&mut self, saved: &[LayerSaved]) {
        let loads: Vec<&Tensor> = saved.iter().filter_map(LayerSaved::load).collect();
        if loads.is_empty() {
            return;
        }
        // Counts are exact in fp64 as far as anybody can count.
        let loads = Tensor::stack(&loads, 0);
        self.loads = Some(match self.loads.take() {
            Some(sum) => sum + loads,
            None => loads,
        });
    }

    /// Adds what the other ranks of the column saw, which together see all of the batch; or what all ranks did, where each routes a
    /// share of its row's tokens. Whoever reads it asks the groups then whether it is so.
    pub(crate) fn agree(&mut self, engine: &Engine) -> Result<(), TrainError> {
        let Some(loads) = self.loads.as_ref().filter(|_| !self.is_agreed) else {
            return Ok(());
        };
        let (group, parts) = match engine.tp.experts {
            Some(_) => (&engine.world, 1),
            None => (&engine.dp, engine.tp.group.size()),
        };
        group.all_reduce(&loads.view([-1]), ReduceOp::Sum)?.wait()?;
        self.is_agreed = true;

        let &[mixtures, _, experts] = loads.size() else {
            return Ok(());
        };
        let factor = self.coefficient * experts as f64;
        if factor > 0.0 {
            let chosen = loads.select(1, 0).sum_dims(&[0], false, Kind::Double);
            // Ranks of the row that see the same tokens each add a part to the sum over the row.
            let parts = parts as f64;
            let d_probabilities = match &self.tokens {
                Count::Known(tokens) => {
                    let pairs = pairs(*tokens, mixtures as usize);
                    chosen * (factor / pairs.powi(2) / parts)
                }
                Count::Unread(tokens) => {
                    let pairs = tokens.to_kind(Kind::Double) * mixtures as f64;
                    chosen * (factor / parts) / (&pairs * &pairs)
                }
            };
            self.d_probabilities = Some(d_probabilities.to_kind(Kind::Float));
        }
        Ok(())
    }
}

/// The auxiliary loss, of a global batch of so many real tokens.
fn loss(loads: &[Load<'_>], tokens: u64) -> f64 {
    let experts = loads.first().map_or(0, |load| load.chosen.len());
    // The sum over the layers, for each expert.
    let pooled = |of: fn(&Load<'_>, usize) -> f64, expert| {
        loads.iter().map(|load| of(load, expert)).sum::<f64>()
    };
    let products = (0..experts).map(|expert| {
        let chosen = pooled(|load, expert| load.chosen[expert], expert);
        chosen * pooled(|load, expert| load.probabilities[expert], expert)
    });
    experts as f64 * products.sum::<f64>() / pairs(tokens, loads.len()).powi(2)
}

/// Of a layer with experts and a token, at least one.
fn pairs(tokens: u64, mixtures: usize) -> f64 {
    (tokens * mixtures as u64).max(1) as f64
}

/// What the experts of a layer got.
struct Load<'a> {
    /// For each expert, the tokens that chose it.
    chosen: &'a [f64],
    /// For each expert, the sum of its probabilities over the tokens.
    probabilities: &'a [f64],
}

impl<'a> Load<'a> {
    fn of(values: &'a [f64]) -> Self {
        let (chosen, probabilities) = values.split_at(values.len() / 2);
        Self {
            chosen,
            probabilities,
        }
    }

    fn counts(&self) -> Vec<u64> {
        self.chosen.iter().map(|&count| count as u64).collect()
    }

    fn max_over_mean(&self) -> f64 {
        let counts = self.counts();
        let total: u64 = counts.iter().sum();
        let most = counts.iter().max().copied().unwrap_or(0);
        (most * counts.len() as u64) as f64 / total.max(1) as f64
    }
}

/// After so many steps in a row without a token, an expert is worth a word.
const IDLE_STEPS: u64 = 100;

/// Notices experts that no token goes to any more.
#[derive(Debug, Default)]
pub(crate) struct IdleExperts(Vec<Vec<u64>>);

impl IdleExperts {
    /// Takes note of a step, and warns of experts that have just been without a token for too long: each once, until it has got
    /// one.
    pub(crate) fn after_step(&mut self, report: &ExpertReport) {
        for (layer, silent) in self.just_silent(&report.chosen) {
            let silent: Vec<String> = silent.iter().map(usize::to_string).collect();
            tracing::warn!(
                "in layer {layer} of those with experts, no token has gone to expert {} for {IDLE_STEPS} steps; a larger \
                 --router_aux_loss_coef spreads them",
                silent.join(", ")
            );
        }
    }

    /// Layers with the experts that have now been without a token for [`IDLE_STEPS`] steps.
    fn just_silent(&mut self, chosen: &[Vec<u64>]) -> Vec<(usize, Vec<usize>)> {
        self.0.resize_with(chosen.len(), Vec::new);
        let mut found = Vec::new();
        for (layer, (idle, chosen)) in self.0.iter_mut().zip(chosen).enumerate() {
            idle.resize(chosen.len(), 0);
            for (steps, chosen) in idle.iter_mut().zip(chosen) {
                *steps = if *chosen == 0 { *steps + 1 } else { 0 };
            }
            let experts = idle.iter().enumerate();
            let experts = experts.filter(|(_, steps)| **steps == IDLE_STEPS);
            let silent: Vec<usize> = experts.map(|(expert, _)| expert).collect();
            if !silent.is_empty() {
                found.push((layer, silent));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_without_tokens_is_named_once_until_it_gets_some() {
        let mut idle = IdleExperts::default();
        let silent = [vec![3, 0, 5], vec![0, 0, 8]];
        for _ in 1..IDLE_STEPS {
            assert!(idle.just_silent(&silent).is_empty());
        }
        // One of the three gets a token just in time.
        let saved = [vec![3, 0, 5], vec![1, 0, 8]];
        assert_eq!(idle.just_silent(&saved), [(0, vec![1]), (1, vec![1])]);
        for _ in 0..IDLE_STEPS - 1 {
            assert!(idle.just_silent(&silent).is_empty());
        }
        assert_eq!(idle.just_silent(&silent), [(1, vec![0])]);
        assert!(idle.just_silent(&[vec![1, 1, 1], vec![1, 1, 1]]).is_empty());
        for _ in 1..IDLE_STEPS {
            assert!(idle.just_silent(&silent).is_empty());
        }
        assert_eq!(idle.just_silent(&silent), [(0, vec![1]), (1, vec![0, 1])]);
    }
}
