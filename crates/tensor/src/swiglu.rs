//! SwiGLU (Shazeer, arXiv 2002.05202): `silu(gate) * up`, over one fused `[tokens, 2 * features]` projection.

pub mod aten;
mod fused;

use tandem_torch::Tensor;

/// `silu(gate) * up`. `gate_up` is `[tokens, 2 * features]`, gate first; the result is `[tokens, features]`.
///
/// fp32 inside; the product is rounded once.
pub fn forward(gate_up: &Tensor) -> Tensor {
    fused::forward(gate_up).unwrap_or_else(|| aten::forward(gate_up))
}

/// The gradient of [`forward`] with respect to `gate_up`, in its shape and kind; fp32 inside.
pub fn backward(d_y: &Tensor, gate_up: &Tensor) -> Tensor {
    fused::backward(d_y, gate_up).unwrap_or_else(|| aten::backward(d_y, gate_up))
}

/// [`forward`] and [`backward`] in one pass, for a caller that kept `gate_up` only: the product and the gradient.
pub fn forward_and_backward(d_y: &Tensor, gate_up: &Tensor) -> (Tensor, Tensor) {
    fused::forward_and_backward(d_y, gate_up)
        .unwrap_or_else(|| (forward(gate_up), backward(d_y, gate_up)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_torch::Kind;

    use crate::cpu::testing::{assert_close, dot, numeric_gradient, randn};

    #[test]
    fn matches_finite_differences() {
        let x = randn(&[7, 10], 1);
        let d_y = randn(&[7, 5], 2);
        let output = |x: &Tensor| {
            let x = x.to_kind(Kind::Double);
            x.narrow(1, 0, 5).silu() * x.narrow(1, 5, 5)
        };
        let d_x = numeric_gradient(&x, |x| dot(&output(x), &d_y));
        assert_close("y", &forward(&x), &output(&x), 1e-6);
        assert_close("d_gate_up", &backward(&d_y, &x), &d_x, 1e-5);
    }

    #[test]
    fn fused_kernels_match_tensor_operations() {
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 1.6e-2)] {
            for (tokens, features) in [(1i64, 1i64), (7, 33), (5, 2432)] {
                let x = (randn(&[tokens, 2 * features], 1) * 3.0).to_kind(kind);
                let d_y = randn(&[tokens, features], 2).to_kind(kind);
                let label = format!("{kind:?}, {tokens} x {features}");
                let (y, d_x) = (forward(&x), backward(&d_y, &x));
                assert_close(&format!("y, {label}"), &y, &aten::forward(&x), tolerance);
                let expected = aten::backward(&d_y, &x);
                assert_close(&format!("d_gate_up, {label}"), &d_x, &expected, tolerance);
                let (y_again, d_x_again) = forward_and_backward(&d_y, &x);
                assert_close(&format!("y again, {label}"), &y_again, &y, 0.0);
                assert_close(&format!("d_gate_up again, {label}"), &d_x_again, &d_x, 0.0);
            }
        }
    }

    /// Gates so large that `exp(-gate)` is infinite or zero.
    #[test]
    fn the_ends_of_the_range_are_finite() {
        let x = Tensor::from_slice(&[-1e4f32, 1e4, 2.0, 3.0]).view([1, 4]);
        let d_y = Tensor::from_slice(&[1f32, 1.0]).view([1, 2]);
        let expected = Tensor::from_slice(&[0f32, 3e4]).view([1, 2]);
        assert_close("y", &forward(&x), &expected, 0.0);
        let expected = Tensor::from_slice(&[0f32, 3.0, 0.0, 1e4]).view([1, 4]);
        assert_close("d_gate_up", &backward(&d_y, &x), &expected, 0.0);
    }
}
