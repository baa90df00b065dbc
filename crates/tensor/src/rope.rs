//! Rotary position embedding (Su et al., arXiv 2104.09864) in Hugging Face's half-split layout.

use tch::{Kind, Tensor};

/// Rotates `x` in place: for each position, `(a, b) -> (a cos - b sin, b cos + a sin)` where `a` and `b` are the
/// first and second half of the head dimension.
///
/// `x` is `[batch, seq, heads, head_dim]` (any strides), `cos` and `sin` are fp32 `[seq, head_dim / 2]`.
pub fn apply_(x: &Tensor, cos: &Tensor, sin: &Tensor) {
    rotate_(x, cos, sin, 1.0);
}

/// The gradient of [`apply_`], in place: the transposed rotation.
pub fn apply_backward_(d_x: &Tensor, cos: &Tensor, sin: &Tensor) {
    rotate_(d_x, cos, sin, -1.0);
}

fn rotate_(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f64) {
    let half = cos.size()[1];
    let (cos, sin) = (cos.unsqueeze(1), sin.unsqueeze(1) * direction);
    let (first, second) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
    let (a, b) = (first.to_kind(Kind::Float), second.to_kind(Kind::Float));
    // `to_kind` returns the same storage when `x` is fp32 already, so both results exist before either is written.
    let new_first = &a * &cos - &b * &sin;
    let new_second = &b * &cos + &a * &sin;
    let (mut first, mut second) = (first, second);
    first.copy_(&new_first);
    second.copy_(&new_second);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, randn};

    #[test]
    fn rotates_as_rotate_half_does_and_back() {
        let x = randn(&[2, 5, 3, 8], 1);
        let angles = randn(&[5, 4], 2);
        let (cos, sin) = (angles.cos(), angles.sin());
        let y = x.copy();
        apply_(&y, &cos, &sin);

        let wide = |t: &Tensor| Tensor::cat(&[t, t], -1).view([1, 5, 1, 8]);
        let rotated = Tensor::cat(&[-x.narrow(-1, 4, 4), x.narrow(-1, 0, 4)], -1);
        let expected = &x * wide(&cos) + rotated * wide(&sin);
        assert_close("rope", &y, &expected, 1e-6);

        apply_backward_(&y, &cos, &sin);
        assert_close("inverse", &y, &x, 1e-5);
    }
}
