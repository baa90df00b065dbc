//! Cross entropy over a vocabulary that is cut across ranks, one chunk of rows at a time.
//!
//! Each shard reduces its logits to three numbers a row ([`local_stats`]); the stats of all shards give the loss and
//! what turns the local logits into their gradient in place ([`combine`], [`logits_to_gradient_`]). The full logits
//! of a chunk never exist on one rank (vocabulary parallelism of Megatron-LM, arXiv 1909.08053).

pub mod aten;
mod fused;

use std::ops::Range;

pub use tandem_kernels::cross_entropy::{Bend, IGNORE};
use tandem_torch::{Kind, Tensor};

use crate::factor::Factor;

/// What the gradient is of.
#[derive(Debug, Clone, Copy)]
pub struct Objective<'a> {
    /// Multiplies the cross entropy.
    pub scale: Factor<'a>,
    /// Multiplies the square of a row's `logsumexp`, which is added to its cross entropy.
    pub z_loss: f32,
}

/// What the shards agreed on for a chunk of rows.
#[derive(Debug)]
pub struct Normaliser {
    /// `log(sum(exp(logits)))` over the whole vocabulary, fp32 `[rows]`.
    pub logsumexp: Tensor,
    /// Cross entropy of each row, 0 where the target is ignored, fp32 `[rows]`.
    pub loss: Tensor,
}

/// Bends the logits in place, without any stats; for evaluation.
pub fn bend_(logits: &Tensor, bend: Bend) {
    if bend != Bend::NONE && fused::bend_(logits, bend).is_none() {
        aten::bend_(logits, bend);
    }
}

/// Bends the logits in place, and returns fp32 `[3, rows]`: the largest local logit, the sum of `exp(logit - largest)`, and the target's logit where the
/// target lies in this shard (0 elsewhere).
///
/// `logits` is `[rows, local vocabulary]`, `targets` i64 `[rows]` in the global vocabulary.
pub fn local_stats(logits: &Tensor, targets: &Tensor, vocab: Range<i64>, bend: Bend) -> Tensor {
    fused::local_stats(logits, targets, &vocab, bend)
        .unwrap_or_else(|| aten::local_stats(logits, targets, vocab, bend))
}

/// Joins the stats of all shards, fp32 `[shards, 3, rows]`, in shard order.
pub fn combine(stats: &Tensor, targets: &Tensor) -> Normaliser {
    let (largest, sum, target) = (
        stats.select(1, 0),
        stats.select(1, 1),
        stats.select(1, 2).sum_dims(&[0], false, Kind::Float),
    );
    let (maximum, _) = largest.max_dim(0, false);
    let total = (sum * (largest - &maximum).exp()).sum_dims(&[0], false, Kind::Float);
    let logsumexp = total.log() + maximum;
    let loss = (&logsumexp - target).masked_fill(&targets.eq(IGNORE), 0.0);
    Normaliser { logsumexp, loss }
}

/// Turns `logits`, as [`local_stats`] has left them, into the gradient of `scale * sum(loss + z_loss * logsumexp^2)` with
/// respect to what they were before: `scale * (softmax * (1 + 2 z_loss logsumexp) - one_hot)` times the slope of the bend,
/// zero in rows whose target is ignored. In place.
pub fn logits_to_gradient_(
    logits: &Tensor,
    targets: &Tensor,
    vocab: Range<i64>,
    normaliser: &Normaliser,
    bend: Bend,
    objective: Objective<'_>,
) {
    if fused::logits_to_gradient_(logits, targets, &vocab, normaliser, bend, objective).is_none() {
        aten::logits_to_gradient_(logits, targets, vocab, normaliser, bend, objective);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, numeric_gradient, randn};

    /// Plain, and with all that can be done to logits: caps, scales, the square of the logarithm of their sum.
    const BENDS: [(Bend, f32); 4] = [
        (Bend::NONE, 0.0),
        (Bend::NONE, 0.05),
        (
            Bend {
                scale: 0.6,
                soft_cap: None,
            },
            0.0,
        ),
        (
            Bend {
                scale: 1.5,
                soft_cap: Some(4.0),
            },
            0.03,
        ),
    ];

    #[test]
    fn shards_reproduce_the_whole_loss_and_gradient() {
        let logits = randn(&[6, 11], 1) * 5.0;
        let targets = Tensor::from_slice(&[0i64, 10, IGNORE, 4, 5, IGNORE]);
        for (bend, z_loss) in BENDS {
            let objective = Objective {
                scale: 0.25.into(),
                z_loss,
            };
            let (loss, _) = cross_entropy(&logits, &targets, bend);
            let d_logits = numeric_gradient(&logits, |logits| {
                let (entropy, squares) = cross_entropy(logits, &targets, bend);
                0.25 * (entropy + f64::from(z_loss) * squares)
            });
            for ranges in [
                std::iter::once(0..11i64).collect(),
                vec![0..5, 5..11],
                vec![0..1, 1..1, 1..6, 6..11],
            ] {
                let parts: Vec<_> = ranges
                    .iter()
                    .map(|r| logits.narrow(1, r.start, r.end - r.start).copy())
                    .collect();
                let stats: Vec<_> = parts
                    .iter()
                    .zip(&ranges)
                    .map(|(part, range)| local_stats(part, &targets, range.clone(), bend))
                    .collect();
                let normaliser = combine(&Tensor::stack(&stats, 0), &targets);
                // The loss that is reported is the cross entropy alone.
                let sum = normaliser.loss.sum(Kind::Double).double_value();
                assert!((sum - loss).abs() <= 1e-5 * loss, "{sum} is not {loss}");
                for (part, range) in parts.iter().zip(&ranges) {
                    let range = range.clone();
                    logits_to_gradient_(part, &targets, range, &normaliser, bend, objective);
                }
                let label = format!("d_logits, {bend:?}, z {z_loss}");
                assert_close(&label, &Tensor::cat(&parts, 1), &d_logits, 2e-6);
            }
        }
    }

    /// The fused kernels against tensor operations, at lengths around the kernels' blocks, with targets in, outside and
    /// at the edges of the shard, rows of `-inf`, and an ignored row.
    #[test]
    fn fused_kernels_match_tensor_operations() {
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 4e-3)] {
            for columns in [1i64, 17, 2048, 5000] {
                let (start, rows) = (1000, 6);
                let vocab = start..start + columns;
                let logits = (randn(&[rows, columns], 1) * 6.0).to_kind(kind);
                let masked = logits.get(1).narrow(0, 0, columns * 2 / 3);
                masked.fill_(f64::NEG_INFINITY);
                let last = start + columns - 1;
                let targets = Tensor::from_slice(&[start, last, IGNORE, start - 1, last + 1, last]);
                for bend in BENDS {
                    let (bend, z_loss) = bend;
                    let scale = 0.3.into();
                    let objective = Objective { scale, z_loss };
                    let (logits, plain) = (logits.copy(), logits.copy());
                    let stats = local_stats(&logits, &targets, vocab.clone(), bend);
                    let expected = aten::local_stats(&plain, &targets, vocab.clone(), bend);
                    let label = format!("{kind:?}, {columns} columns, {bend:?}");
                    // A row of `-inf` has it for its largest in both.
                    let numbers = stats
                        .to_vec::<f64>()
                        .into_iter()
                        .zip(expected.to_vec::<f64>());
                    let (stats_finite, expected_finite): (Vec<f64>, Vec<f64>) =
                        numbers.filter(|(a, e)| a != e).unzip();
                    assert_close(
                        &format!("stats, {label}"),
                        &Tensor::from_slice(&stats_finite),
                        &Tensor::from_slice(&expected_finite),
                        if kind == Kind::Float { 2e-6 } else { 2e-2 },
                    );
                    let normaliser = combine(&stats.unsqueeze(0), &targets);
                    logits_to_gradient_(
                        &logits,
                        &targets,
                        vocab.clone(),
                        &normaliser,
                        bend,
                        objective,
                    );
                    aten::logits_to_gradient_(
                        &plain,
                        &targets,
                        vocab.clone(),
                        &normaliser,
                        bend,
                        objective,
                    );
                    assert_close(&format!("d_logits, {label}"), &logits, &plain, tolerance);
                }
            }
        }
    }

    /// What multiplies the gradient may be on the device, where the host does not know it.
    #[test]
    fn a_scale_on_the_device_gives_the_gradient_of_one_that_is_known() {
        let vocab = 0..50;
        let targets = Tensor::from_slice(&[3i64, 49, IGNORE, 70]);
        let number = Tensor::full([], 0.3, (Kind::Float, tandem_torch::Device::Cpu));
        for (bend, z_loss) in BENDS {
            let gradient = |scale: Factor<'_>| {
                let logits = randn(&[4, 50], 1);
                let stats = aten::local_stats(&logits, &targets, vocab.clone(), bend);
                let agreed = combine(&stats.unsqueeze(0), &targets);
                let objective = Objective { scale, z_loss };
                let vocab = vocab.clone();
                logits_to_gradient_(&logits, &targets, vocab, &agreed, bend, objective);
                logits
            };
            let (known, there) = (gradient(0.3.into()), gradient(Factor::OnDevice(&number)));
            assert_close(&format!("{bend:?}, z {z_loss}"), &there, &known, 2e-6);
        }
    }

    #[test]
    fn a_nan_logit_reaches_the_loss() {
        let logits = randn(&[1, 100], 1);
        logits.get(0).narrow(0, 70, 1).fill_(f64::NAN);
        let targets = Tensor::from_slice(&[3i64]);
        let stats = local_stats(&logits, &targets, 0..100, Bend::NONE);
        let loss = combine(&stats.unsqueeze(0), &targets).loss;
        assert!(loss.get(0).double_value().is_nan());
    }

    /// The sums of the cross entropy and of the squares of the logarithm of the sum over the rows that have a target, in fp64.
    fn cross_entropy(logits: &Tensor, targets: &Tensor, bend: Bend) -> (f64, f64) {
        let columns = logits.size()[1] as usize;
        let scale = f64::from(bend.scale);
        let bent = |x: f64| match bend.soft_cap.map(f64::from) {
            Some(cap) => cap * (scale * x / cap).tanh(),
            None => scale * x,
        };
        let logits: Vec<f64> = logits.to_vec::<f64>().into_iter().map(bent).collect();
        let rows = logits.chunks(columns).zip(targets.to_vec::<i64>());
        rows.filter(|(_, target)| *target != IGNORE)
            .map(|(row, target)| {
                let sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
                (sum - row[target as usize], sum * sum)
            })
            .fold((0.0, 0.0), |sums, of_row| {
                (sums.0 + of_row.0, sums.1 + of_row.1)
            })
    }
}
