//! The router of a mixture of experts (Shazeer et al., arXiv 1701.06538): which experts a token goes to, and with what weight;
//! fp32 throughout.

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::exp::exp;
use crate::lanes::{self, Lanes, by_lanes};

/// How a router chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Experts to choose from.
    pub experts: usize,
    /// How many each token goes to.
    pub top_k: usize,
    /// The chosen weights are divided by their sum.
    pub normalise: bool,
}

/// Softmax over all experts, then the `top_k` largest of each token, largest first; of equals the first.
///
/// `logits` and `probabilities` are `[tokens, experts]`, `chosen` and `weights` `[tokens, top_k]`.
///
/// # Panics
/// When there are fewer experts than are chosen, none is chosen, or a size does not fit.
pub fn forward(
    logits: &[f32],
    rule: Rule,
    probabilities: &mut [f32],
    chosen: &mut [u32],
    weights: &mut [f32],
) {
    let tokens = checked_tokens(rule, logits, chosen);
    assert_eq!(probabilities.len(), logits.len(), "a probability each");
    assert_eq!(weights.len(), tokens * rule.top_k, "a weight each");
    let rows = logits
        .chunks_exact(rule.experts)
        .zip(probabilities.chunks_exact_mut(rule.experts))
        .zip(chosen.chunks_exact_mut(rule.top_k))
        .zip(weights.chunks_exact_mut(rule.top_k));
    dispatch::for_each(
        rows.map(|(((logits, probabilities), chosen), weights)| Choice {
            logits,
            probabilities,
            chosen,
            weights,
            normalise: rule.normalise,
        }),
    );
}

/// The gradient `d_logits [tokens, experts]` from that of the weights, `d_weights [tokens, top_k]`, and what [`forward`] gave.
///
/// `d_probabilities [experts]` comes on top for every token of `counted [tokens]`, or for all where that is empty: the gradient
/// of a loss that is the same function of each token's probabilities (load balancing). Where it is empty there is none.
///
/// # Panics
/// When a size does not fit.
#[expect(
    clippy::too_many_arguments,
    reason = "what forward gave, its gradient, and that of the balance"
)]
pub fn backward(
    d_weights: &[f32],
    rule: Rule,
    probabilities: &[f32],
    chosen: &[u32],
    weights: &[f32],
    d_probabilities: &[f32],
    counted: &[bool],
    d_logits: &mut [f32],
) {
    let tokens = checked_tokens(rule, probabilities, chosen);
    assert_eq!(d_weights.len(), chosen.len(), "a gradient for each weight");
    assert_eq!(weights.len(), chosen.len(), "a weight each");
    assert_eq!(d_logits.len(), probabilities.len(), "a gradient each");
    if !d_probabilities.is_empty() {
        assert_eq!(d_probabilities.len(), rule.experts, "one for each expert");
        let all = counted.is_empty() || counted.len() == tokens;
        assert!(all, "each token counts or does not");
    }
    let rows = probabilities
        .chunks_exact(rule.experts)
        .zip(chosen.chunks_exact(rule.top_k))
        .zip(weights.chunks_exact(rule.top_k))
        .zip(d_weights.chunks_exact(rule.top_k))
        .zip(d_logits.chunks_exact_mut(rule.experts));
    dispatch::for_each(rows.enumerate().map(
        |(token, ((((probabilities, chosen), weights), d_weights), d_logits))| {
            let is_counted = counted.get(token) != Some(&false);
            ChoiceGradient {
                probabilities,
                chosen,
                weights,
                d_weights,
                d_probabilities: if is_counted { d_probabilities } else { &[] },
                d_logits,
                normalise: rule.normalise,
            }
        },
    ));
}

fn checked_tokens<T>(rule: Rule, of_experts: &[T], chosen: &[u32]) -> usize {
    let Rule { experts, top_k, .. } = rule;
    assert!(
        (1..=experts).contains(&top_k),
        "{top_k} of {experts} experts"
    );
    assert!(
        of_experts.len().is_multiple_of(experts) && chosen.len().is_multiple_of(top_k),
        "{} elements are not rows of {experts} experts, or {} not of {top_k}",
        of_experts.len(),
        chosen.len()
    );
    let tokens = chosen.len() / top_k;
    assert_eq!(of_experts.len() / experts, tokens, "one row for each token");
    tokens
}

/// One token's choice.
struct Choice<'a> {
    logits: &'a [f32],
    probabilities: &'a mut [f32],
    chosen: &'a mut [u32],
    weights: &'a mut [f32],
    normalise: bool,
}

impl Kernel for Choice<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let largest = lanes::max::<I, _>(self.logits);
        let (logits, p) = (self.logits, &mut *self.probabilities);
        by_lanes!(logits.len(), [logits], [p] => {
            exp(Lanes::<I>::load(logits) - largest).store(p);
        });
        let total = lanes::sum::<I, _>(self.probabilities, |p| p);
        for p in self.probabilities.iter_mut() {
            *p /= total;
        }
        for rank in 0..self.chosen.len() {
            let (earlier, rest) = self.chosen.split_at_mut(rank);
            let mut best = None;
            for (expert, &p) in self.probabilities.iter().enumerate() {
                // A NaN is nobody's better, but is taken where nothing else is left: it must reach the loss.
                let better = best.is_none_or(|(_, least)| p > least);
                if better && !earlier.contains(&(expert as u32)) {
                    best = Some((expert, p));
                }
            }
            if let Some((expert, p)) = best {
                (rest[0], self.weights[rank]) = (expert as u32, p);
            }
        }
        if self.normalise {
            let sum: f32 = self.weights.iter().sum();
            for weight in self.weights.iter_mut() {
                *weight /= sum;
            }
        }
    }
}

/// One token's gradient.
struct ChoiceGradient<'a> {
    probabilities: &'a [f32],
    chosen: &'a [u32],
    weights: &'a [f32],
    d_weights: &'a [f32],
    /// Empty where the token does not count for the balance.
    d_probabilities: &'a [f32],
    d_logits: &'a mut [f32],
    normalise: bool,
}

impl Kernel for ChoiceGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let Self {
            probabilities,
            chosen,
            weights,
            d_weights,
            d_logits: d,
            ..
        } = self;
        match self.d_probabilities {
            [] => d.fill(0.0),
            of_balance => d.copy_from_slice(of_balance),
        }
        // Of `w = s / sum(s)`: the same for all chosen, less the part that the sum takes back.
        let (sum, taken_back) = if self.normalise {
            let sum = chosen.iter().map(|&e| probabilities[e as usize]).sum();
            (sum, d_weights.iter().zip(weights).map(|(d, w)| d * w).sum())
        } else {
            (1f32, 0f32)
        };
        for (&expert, d_weight) in chosen.iter().zip(d_weights) {
            d[expert as usize] += (d_weight - taken_back) / sum;
        }
        let mean = lanes::dot::<I, _, _>(d, probabilities);
        for (d, p) in d.iter_mut().zip(probabilities) {
            *d = p * (*d - mean);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    fn rule(normalise: bool) -> Rule {
        Rule {
            experts: 5,
            top_k: 2,
            normalise,
        }
    }

    struct Chosen {
        probabilities: Vec<f32>,
        chosen: Vec<u32>,
        weights: Vec<f32>,
    }

    fn choose(logits: &[f32], rule: Rule) -> Chosen {
        let tokens = logits.len() / rule.experts;
        let mut it = Chosen {
            probabilities: vec![f32::NAN; logits.len()],
            chosen: vec![u32::MAX; tokens * rule.top_k],
            weights: vec![f32::NAN; tokens * rule.top_k],
        };
        let Chosen {
            probabilities,
            chosen,
            weights,
        } = &mut it;
        forward(logits, rule, probabilities, chosen, weights);
        it
    }

    #[test]
    fn the_largest_are_chosen_and_equals_in_their_order() {
        let logits = [0.0, 2.0, 1.0, 2.0, -1.0, 7.0, 7.0, 7.0, 7.0, 7.0];
        let plain = choose(&logits, rule(false));
        assert_eq!(plain.chosen, [1, 3, 0, 1]);
        let sum: f32 = plain.probabilities[..5].iter().sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert_eq!(plain.weights[0], plain.probabilities[1]);
        assert!((plain.weights[2] - 0.2).abs() < 1e-6);
        let normalised = choose(&logits, rule(true));
        assert_eq!(normalised.chosen, plain.chosen);
        assert!(normalised.weights.iter().all(|w| (w - 0.5).abs() < 1e-6));
    }

    #[test]
    fn a_nan_reaches_the_weights() {
        let logits = [f32::NAN, 0.0, 1.0, 2.0, 3.0];
        let weights = choose(&logits, rule(false)).weights;
        assert!(weights.iter().all(|w| w.is_nan()));
    }

    /// The sum of the products of weights and probabilities with fixed numbers, in fp64, for one choice.
    fn objective(logits: &[f64], chosen: &[u32], rule: Rule, of_weights: &[f32], b: &[f32]) -> f64 {
        let mut value = 0.0;
        for (token, logits) in logits.chunks(rule.experts).enumerate() {
            let total: f64 = logits.iter().map(|x| x.exp()).sum();
            let p: Vec<f64> = logits.iter().map(|x| x.exp() / total).collect();
            let at = token * rule.top_k..(token + 1) * rule.top_k;
            let chosen = &chosen[at.clone()];
            let sum: f64 = chosen.iter().map(|&e| p[e as usize]).sum();
            let divisor = if rule.normalise { sum } else { 1.0 };
            for (&expert, &d) in chosen.iter().zip(&of_weights[at]) {
                value += f64::from(d) * p[expert as usize] / divisor;
            }
            // Every token but the first counts for the balance.
            if token > 0 {
                let of_balance = p.iter().zip(b).map(|(p, &b)| p * f64::from(b));
                value += of_balance.sum::<f64>();
            }
        }
        value
    }

    #[test]
    fn gradients_are_central_differences() {
        for normalise in [false, true] {
            let rule = rule(normalise);
            let (logits, d_weights, balance) = (normal(20, 1), normal(8, 2), normal(5, 3));
            let it = choose(&logits, rule);
            let mut d_logits = vec![f32::NAN; 20];
            let counted = [false, true, true, true];
            backward(
                &d_weights,
                rule,
                &it.probabilities,
                &it.chosen,
                &it.weights,
                &balance,
                &counted,
                &mut d_logits,
            );
            let at: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
            for (index, &d) in d_logits.iter().enumerate() {
                let moved = |step: f64| {
                    let mut at = at.clone();
                    at[index] += step;
                    objective(&at, &it.chosen, rule, &d_weights, &balance)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((f64::from(d) - slope).abs() < 1e-6, "{index}: {d} {slope}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "6 of 5 experts")]
    fn more_choices_than_experts_are_noticed() {
        let rule = Rule {
            top_k: 6,
            ..rule(false)
        };
        forward(&[], rule, &mut [], &mut [], &mut []);
    }
}
