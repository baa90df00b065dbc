//! Cross entropy over a vocabulary that is cut across ranks, one chunk of rows at a time.
//!
//! Each shard reduces its logits to three numbers a row ([`local_stats`]); the stats of all shards give the loss and
//! what turns the local logits into their gradient in place ([`combine`], [`logits_to_gradient_`]). The full logits
//! of a chunk never exist on one rank (vocabulary parallelism of Megatron-LM, arXiv 1909.08053).

use std::ops::Range;

use tch::{Kind, Tensor};

/// The label of a position that has no target.
pub const IGNORE: i64 = -100;

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
    let rows = logits.size()[0];
    if vocab.is_empty() {
        let options = (Kind::Float, logits.device());
        let largest = Tensor::full([rows], f64::NEG_INFINITY, options);
        return Tensor::stack(
            &[
                &largest,
                &Tensor::zeros([rows], options),
                &Tensor::zeros([rows], options),
            ],
            0,
        );
    }
    let logits = logits.to_kind(Kind::Float);
    let (largest, _) = logits.max_dim(-1, false);
    let sum = (&logits - largest.unsqueeze(1)).exp().sum_dim_intlist(
        [-1i64].as_slice(),
        false,
        Kind::Float,
    );
    let elsewhere = outside(targets, &vocab);
    let local = (targets - vocab.start).masked_fill(&elsewhere, 0);
    let target = logits
        .gather(1, &local.unsqueeze(1), false)
        .squeeze_dim(1)
        .masked_fill(&elsewhere, 0.0);
    Tensor::stack(&[largest, sum, target], 0)
}

/// Joins the stats of all shards, fp32 `[shards, 3, rows]`, in shard order.
pub fn combine(stats: &Tensor, targets: &Tensor) -> Normaliser {
    let (largest, sum, target) = (
        stats.select(1, 0),
        stats.select(1, 1),
        stats
            .select(1, 2)
            .sum_dim_intlist([0i64].as_slice(), false, Kind::Float),
    );
    let (maximum, _) = largest.max_dim(0, false);
    let total =
        (sum * (largest - &maximum).exp()).sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
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
    if vocab.is_empty() {
        return;
    }
    let ignored = targets.eq(IGNORE);
    let mut gradient =
        (logits.to_kind(Kind::Float) - normaliser.logsumexp.unsqueeze(1)).exp() * scale;
    let elsewhere = outside(targets, &vocab);
    let local = (targets - vocab.start).masked_fill(&elsewhere, 0);
    let one_hot = Tensor::full([targets.size()[0]], -scale, (Kind::Float, logits.device()))
        .masked_fill(&elsewhere, 0.0);
    let _ = gradient.scatter_add_(1, &local.unsqueeze(1), &one_hot.unsqueeze(1));
    let _ = gradient.masked_fill_(&ignored.unsqueeze(1), 0.0);
    logits.shallow_clone().copy_(&gradient);
}

fn outside(targets: &Tensor, vocab: &Range<i64>) -> Tensor {
    targets.lt(vocab.start).logical_or(&targets.ge(vocab.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, randn};

    #[test]
    fn shards_reproduce_the_whole_loss_and_gradient() {
        let logits = randn(&[6, 11], 1) * 5.0;
        let targets = Tensor::from_slice(&[0i64, 10, IGNORE, 4, 5, IGNORE]);
        let scale = 0.25;
        let la = logits.copy().set_requires_grad(true);
        let loss = la.g_cross_entropy_sum(&targets);
        (&loss * scale).backward();

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
            assert_close(
                "loss",
                &normaliser.loss.sum(Kind::Float),
                &loss.detach(),
                1e-5,
            );
            for (part, range) in parts.iter().zip(&ranges) {
                logits_to_gradient_(part, &targets, range.clone(), &normaliser, scale);
            }
            assert_close("d_logits", &Tensor::cat(&parts, 1), &la.grad(), 1e-6);
        }
    }

    trait SumCrossEntropy {
        fn g_cross_entropy_sum(&self, targets: &Tensor) -> Tensor;
    }

    impl SumCrossEntropy for Tensor {
        fn g_cross_entropy_sum(&self, targets: &Tensor) -> Tensor {
            self.cross_entropy_loss(targets, None::<&Tensor>, tch::Reduction::Sum, IGNORE, 0.0)
        }
    }
}
