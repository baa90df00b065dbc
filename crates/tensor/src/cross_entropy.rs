//! Cross entropy over a vocabulary that is cut across ranks, one chunk of rows at a time.
//!
//! Each shard reduces its logits to three numbers a row ([`local_stats`]); the stats of all shards give the loss and
//! what turns the local logits into their gradient in place ([`combine`], [`logits_to_gradient_`]). The full logits
//! of a chunk never exist on one rank (vocabulary parallelism of Megatron-LM, arXiv 1909.08053).

pub mod aten;
mod fused;

use std::ops::Range;

pub use tandem_kernels::cross_entropy::IGNORE;
use tandem_torch::{Kind, Tensor};

/// What the shards agreed on for a chunk of rows.
#[derive(Debug)]
pub struct Normaliser {
    /// `log(sum(exp(logits)))` over the whole vocabulary, fp32 `[rows]`.
    pub logsumexp: Tensor,
    /// Cross entropy of each row, 0 where the target is ignored, fp32 `[rows]`.
    pub loss: Tensor,
}

/// fp32 `[3, rows]`: the largest local logit, the sum of `exp(logit - largest)`, and the target's logit where the
/// target lies in this shard (0 elsewhere).
///
/// `logits` is `[rows, local vocabulary]`, `targets` i64 `[rows]` in the global vocabulary.
pub fn local_stats(logits: &Tensor, targets: &Tensor, vocab: Range<i64>) -> Tensor {
    fused::local_stats(logits, targets, &vocab)
        .unwrap_or_else(|| aten::local_stats(logits, targets, vocab))
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

/// Turns `logits` into the gradient of `scale * sum(loss)`, in place: `scale * (softmax - one_hot)`, zero in rows
/// whose target is ignored.
pub fn logits_to_gradient_(
    logits: &Tensor,
    targets: &Tensor,
    vocab: Range<i64>,
    normaliser: &Normaliser,
    scale: f64,
) {
    if fused::logits_to_gradient_(logits, targets, &vocab, normaliser, scale).is_none() {
        aten::logits_to_gradient_(logits, targets, vocab, normaliser, scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, numeric_gradient, randn};

    #[test]
    fn shards_reproduce_the_whole_loss_and_gradient() {
        let logits = randn(&[6, 11], 1) * 5.0;
        let targets = Tensor::from_slice(&[0i64, 10, IGNORE, 4, 5, IGNORE]);
        let scale = 0.25;
        let loss = cross_entropy(&logits, &targets);
        let d_logits = numeric_gradient(&logits, |logits| scale * cross_entropy(logits, &targets));

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
                .map(|(part, range)| local_stats(part, &targets, range.clone()))
                .collect();
            let normaliser = combine(&Tensor::stack(&stats, 0), &targets);
            let sum = normaliser.loss.sum(Kind::Double).double_value();
            assert!((sum - loss).abs() <= 1e-5 * loss, "{sum} is not {loss}");
            for (part, range) in parts.iter().zip(&ranges) {
                logits_to_gradient_(part, &targets, range.clone(), &normaliser, scale);
            }
            assert_close("d_logits", &Tensor::cat(&parts, 1), &d_logits, 1e-6);
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

                let stats = local_stats(&logits, &targets, vocab.clone());
                let expected = aten::local_stats(&logits, &targets, vocab.clone());
                let label = format!("{kind:?}, {columns} columns");
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
                    2e-6,
                );
                let normaliser = combine(&stats.unsqueeze(0), &targets);
                let (fused, plain) = (logits.copy(), logits.copy());
                logits_to_gradient_(&fused, &targets, vocab.clone(), &normaliser, 0.3);
                aten::logits_to_gradient_(&plain, &targets, vocab, &normaliser, 0.3);
                assert_close(&format!("d_logits, {label}"), &fused, &plain, tolerance);
            }
        }
    }

    #[test]
    fn a_nan_logit_reaches_the_loss() {
        let logits = randn(&[1, 100], 1);
        logits.get(0).narrow(0, 70, 1).fill_(f64::NAN);
        let targets = Tensor::from_slice(&[3i64]);
        let stats = local_stats(&logits, &targets, 0..100);
        let loss = combine(&stats.unsqueeze(0), &targets).loss;
        assert!(loss.get(0).double_value().is_nan());
    }

    /// The sum over the rows that have a target, in fp64.
    fn cross_entropy(logits: &Tensor, targets: &Tensor) -> f64 {
        let columns = logits.size()[1] as usize;
        let logits = logits.to_vec::<f64>();
        let rows = logits.chunks(columns).zip(targets.to_vec::<i64>());
        rows.filter(|(_, target)| *target != IGNORE)
            .map(|(row, target)| {
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                sum.ln() - row[target as usize]
            })
            .sum()
    }
}
