//! The chunk's two passes as tensor operations: for any device and kind, and the yardstick of the fused kernels.

use std::ops::Range;

use tandem_torch::{Kind, Tensor};

use super::{IGNORE, Normaliser};

/// As [`super::local_stats`].
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
    let sum = (&logits - largest.unsqueeze(1))
        .exp()
        .sum_dims(&[-1], false, Kind::Float);
    let elsewhere = outside(targets, &vocab);
    let local = (targets - vocab.start).masked_fill(&elsewhere, 0);
    let target = logits
        .gather(1, &local.unsqueeze(1))
        .squeeze_dim(1)
        .masked_fill(&elsewhere, 0.0);
    Tensor::stack(&[&largest, &sum, &target], 0)
}

/// As [`super::logits_to_gradient_`].
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
    let gradient = (logits.to_kind(Kind::Float) - normaliser.logsumexp.unsqueeze(1)).exp() * scale;
    let elsewhere = outside(targets, &vocab);
    let local = (targets - vocab.start).masked_fill(&elsewhere, 0);
    let one_hot = Tensor::full([targets.size()[0]], -scale, (Kind::Float, logits.device()))
        .masked_fill(&elsewhere, 0.0);
    gradient.scatter_add_(1, &local.unsqueeze(1), &one_hot.unsqueeze(1));
    gradient.masked_fill_(&ignored.unsqueeze(1), 0.0);
    logits.copy_(&gradient);
}

fn outside(targets: &Tensor, vocab: &Range<i64>) -> Tensor {
    targets.lt(vocab.start).logical_or(&targets.ge(vocab.end))
}
