//! Rotary position embedding (Su et al., arXiv 2104.09864) in Hugging Face's half-split layout.

pub mod aten;
mod fused;

use tandem_torch::{Device, Tensor};

/// Rotates `x` in place: for each position, `(a, b) -> (a cos - b sin, b cos + a sin)` where `a` and `b` are the
/// first and second half of the head dimension.
///
/// `x` is `[batch, seq, heads, head_dim]` (any strides), `cos` and `sin` are fp32 `[seq, head_dim / 2]`.
pub fn apply_(x: &Tensor, cos: &Tensor, sin: &Tensor) {
    rotate_(x, cos, sin, 1.0);
}

/// The gradient of [`apply_`], by the transposed rotation: from `d_y` to `d_x`, which has its shape and none of its storage.
pub fn apply_backward_into(d_x: &Tensor, d_y: &Tensor, cos: &Tensor, sin: &Tensor) {
    if d_x.device() == Device::Cpu {
        d_x.copy_(d_y);
        rotate_(d_x, cos, sin, -1.0);
    } else {
        aten::rotate_into(d_x, d_y, cos, sin, -1.0);
    }
}

fn rotate_(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f32) {
    if fused::rotate_(x, cos, sin, direction).is_none() {
        aten::rotate_(x, cos, sin, f64::from(direction));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_torch::Kind;

    use crate::cpu::testing::{assert_close, cos_and_sin, randn};

    #[test]
    fn rotates_as_rotate_half_does_and_back() {
        let x = randn(&[2, 5, 3, 8], 1);
        let angles = randn(&[5, 4], 2);
        let (cos, sin) = cos_and_sin(&angles);
        let y = x.copy();
        apply_(&y, &cos, &sin);

        let wide = |t: &Tensor| Tensor::cat(&[t, t], -1).view([1, 5, 1, 8]);
        let rotated = Tensor::cat(&[x.narrow(-1, 4, 4) * -1.0, x.narrow(-1, 0, 4)], -1);
        let expected = &x * wide(&cos) + rotated * wide(&sin);
        assert_close("rope", &y, &expected, 1e-6);

        let back = y.empty_like();
        apply_backward_into(&back, &y, &cos, &sin);
        assert_close("inverse", &back, &x, 1e-5);
    }

    /// q and k as they lie in the fused q|k|v buffer, whole heads and heads that are rotated in part; and a layout that
    /// the kernel leaves to tensor operations.
    #[test]
    fn the_fused_kernel_matches_tensor_operations() {
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 8e-3)] {
            for (head_dim, half) in [(64i64, 32i64), (10, 5), (16, 4)] {
                let (batch, seq, heads) = (2, 5, 3);
                let qkv = randn(&[batch * seq, 5 * head_dim], 1).to_kind(kind);
                let angles = randn(&[seq, half], 2);
                let (cos, sin) = cos_and_sin(&angles);
                let view = |t: &Tensor| {
                    t.narrow(1, head_dim, heads * head_dim)
                        .view([batch, seq, heads, head_dim])
                };
                for direction in [1.0f32, -1.0] {
                    let (fused, plain) = (qkv.copy(), qkv.copy());
                    let done = fused::rotate_(&view(&fused), &cos, &sin, direction);
                    assert!(done.is_some(), "the kernel applies to views of q|k|v");
                    aten::rotate_(&view(&plain), &cos, &sin, f64::from(direction));
                    let label = format!("{kind:?}, {head_dim}, {half}, {direction}");
                    assert_close(&label, &fused, &plain, tolerance);
                    let apart = view(&qkv).empty_like();
                    aten::rotate_into(&apart, &view(&qkv), &cos, &sin, f64::from(direction));
                    let label = format!("to another tensor: {label}");
                    assert_close(&label, &apart, &view(&plain), 0.0);
                }
                let heads_first = qkv.copy().view([batch, 5, seq, head_dim]).transpose(1, 2);
                assert!(fused::rotate_(&heads_first, &cos, &sin, 1.0).is_none());
            }
        }
    }
}
