//! The rotation as tensor operations: for any device, kind and layout, and the yardstick of the fused kernel.

use tandem_torch::{Kind, Tensor};

/// As [`super::apply_`] with `direction` 1 and [`super::apply_backward_`] with -1.
pub fn rotate_(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f64) {
    let half = cos.size()[1];
    let (cos, sin) = (cos.unsqueeze(1), sin.unsqueeze(1) * direction);
    let (first, second) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
    let (a, b) = (first.to_kind(Kind::Float), second.to_kind(Kind::Float));
    // `to_kind` returns the same storage when `x` is fp32 already, so both results exist before either is written.
    let new_first = &a * &cos - &b * &sin;
    let new_second = &b * &cos + &a * &sin;
    first.copy_(&new_first);
    second.copy_(&new_second);
}
