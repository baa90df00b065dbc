//! The chunk's two passes as tensor operations: for any device and kind, and the yardstick of the fused kernels.

use std::ops::Range;

use tandem_torch::{Kind, Tensor};

use super::{Bend, IGNORE, Normaliser, Objective};
use crate::factor::Factor;

/// As [`super::bend_`].
pub fn bend_(logits: &Tensor, bend: Bend) {
    let scale = f64::from(bend.scale);
    let wide = logits.to_kind(Kind::Float);
    match bend.soft_cap.map(f64::from) {
        Some(cap) => logits.copy_(&((wide * (scale / cap)).tanh() * cap)),
        None if bend.scale != 1.0 => logits.copy_(&(wide * scale)),
        None => {}
    }
}

/// As [`super::local_stats`].
pub fn local_stats(logits: &Tensor, targets: &Tensor, vocab: Range<i64>, bend: Bend) -> Tensor {
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
    bend_(logits, bend);
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
    bend: Bend,
    objective: Objective<'_>,
) {
    if vocab.is_empty() {
        return;
    }
    let ignored = targets.eq(IGNORE);
    let of_device;
    let scale = match objective.scale {
        Factor::Number(number) => Factor::Number(f64::from(number as f32) * f64::from(bend.scale)),
        Factor::OnDevice(_) if bend.scale == 1.0 => objective.scale,
        Factor::OnDevice(number) => {
            of_device = number * f64::from(bend.scale);
            Factor::OnDevice(&of_device)
        }
    };
    let bent = logits.to_kind(Kind::Float);
    let softmax = (&bent - normaliser.logsumexp.unsqueeze(1)).exp();
    let gradient = match f64::from(objective.z_loss) {
        0.0 => scale.times(&softmax),
        z_loss => {
            let factor = scale.times(&(&normaliser.logsumexp * (2.0 * z_loss) + 1.0));
            softmax * factor.unsqueeze(1)
        }
    };
    let elsewhere = outside(targets, &vocab);
    let local = (targets - vocab.start).masked_fill(&elsewhere, 0);
    let options = ([targets.size()[0]], (Kind::Float, logits.device()));
    let less = match scale {
        Factor::Number(number) => Tensor::full(options.0, -number, options.1),
        Factor::OnDevice(number) => Tensor::zeros(options.0, options.1) - number,
    };
    let one_hot = less.masked_fill(&elsewhere, 0.0);
    gradient.scatter_add_(1, &local.unsqueeze(1), &one_hot.unsqueeze(1));
    let gradient = match bend.soft_cap.map(f64::from) {
        Some(cap) => gradient * ((bent * (1.0 / cap)).square() * -1.0 + 1.0),
        None => gradient,
    };
    gradient.masked_fill_(&ignored.unsqueeze(1), 0.0);
    logits.copy_(&gradient);
}

fn outside(targets: &Tensor, vocab: &Range<i64>) -> Tensor {
    targets.lt(vocab.start).logical_or(&targets.ge(vocab.end))
}
