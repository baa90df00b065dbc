//! Gated linear units (Shazeer, arXiv 2002.05202): `activation(gate) * up`, over one fused `[tokens, 2 * features]` projection.

pub mod aten;
mod fused;

pub use tandem_kernels::glu::Activation;
use tandem_torch::Tensor;

/// `activation(gate) * up`. `gate_up` is `[tokens, 2 * features]`, gate first; the result is `[tokens, features]`.
///
/// fp32 inside; the product is rounded once.
pub fn forward(activation: Activation, gate_up: &Tensor) -> Tensor {
    fused::forward(activation, gate_up).unwrap_or_else(|| aten::forward(activation, gate_up))
}

/// The gradient of [`forward`] with respect to `gate_up`, in its shape and kind; fp32 inside.
pub fn backward(activation: Activation, d_y: &Tensor, gate_up: &Tensor) -> Tensor {
    fused::backward(activation, d_y, gate_up)
        .unwrap_or_else(|| aten::backward(activation, d_y, gate_up))
}

/// [`forward`] and [`backward`] in one pass, for a caller that kept `gate_up` only: the product and the gradient.
pub fn forward_and_backward(
    activation: Activation,
    d_y: &Tensor,
    gate_up: &Tensor,
) -> (Tensor, Tensor) {
    fused::forward_and_backward(activation, d_y, gate_up)
        .unwrap_or_else(|| aten::forward_and_backward(activation, d_y, gate_up))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_torch::Kind;

    use crate::cpu::testing::{assert_close, dot, numeric_gradient, randn};

    const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

    #[test]
    fn matches_finite_differences() {
        let x = randn(&[7, 10], 1);
        let d_y = randn(&[7, 5], 2);
        for activation in ALL {
            let output = |x: &Tensor| {
                let x = x.to_kind(Kind::Double);
                let (gate, up) = (x.narrow(1, 0, 5), x.narrow(1, 5, 5));
                aten::activated(activation, &gate) * up
            };
            let d_x = numeric_gradient(&x, |x| dot(&output(x), &d_y));
            let label = |what: &str| format!("{what}, {activation:?}");
            let y = forward(activation, &x);
            assert_close(&label("y"), &y, &output(&x), 2e-6);
            let found = backward(activation, &d_y, &x);
            assert_close(&label("d_gate_up"), &found, &d_x, 1e-5);
            let plain = aten::backward(activation, &d_y, &x);
            assert_close(&label("d_gate_up of tensors"), &plain, &d_x, 1e-5);
        }
    }

    #[test]
    fn fused_kernels_match_tensor_operations() {
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 1.6e-2)] {
            for (tokens, features) in [(1i64, 1i64), (7, 33), (5, 2432)] {
                for activation in ALL {
                    let x = (randn(&[tokens, 2 * features], 1) * 3.0).to_kind(kind);
                    let d_y = randn(&[tokens, features], 2).to_kind(kind);
                    let label = |what: &str| {
                        format!("{what}, {activation:?}, {kind:?}, {tokens} x {features}")
                    };
                    let (y, d_x) = (forward(activation, &x), backward(activation, &d_y, &x));
                    // The kernel's error function is within 1.5e-7, times half a gate, times up.
                    let tolerance = match activation {
                        Activation::Gelu => tolerance * 2.0,
                        _ => tolerance,
                    };
                    let expected = aten::forward(activation, &x);
                    assert_close(&label("y"), &y, &expected, tolerance);
                    let expected = aten::backward(activation, &d_y, &x);
                    assert_close(&label("d_gate_up"), &d_x, &expected, tolerance);
                    let (y_again, d_x_again) = forward_and_backward(activation, &d_y, &x);
                    assert_close(&label("y again"), &y_again, &y, 0.0);
                    assert_close(&label("d_gate_up again"), &d_x_again, &d_x, 0.0);
                    let (y_again, d_x_again) = aten::forward_and_backward(activation, &d_y, &x);
                    let of_tensors = aten::forward(activation, &x);
                    assert_close(&label("y of tensors again"), &y_again, &of_tensors, 0.0);
                    assert_close(
                        &label("d_gate_up of tensors again"),
                        &d_x_again,
                        &expected,
                        0.0,
                    );
                }
            }
        }
    }

    /// Gates so large that `exp(-gate)` is infinite or zero.
    #[test]
    fn the_ends_of_the_range_are_finite() {
        let x = Tensor::from_slice(&[-1e4f32, 1e4, 2.0, 3.0]).view([1, 4]);
        let d_y = Tensor::from_slice(&[1f32, 1.0]).view([1, 2]);
        for activation in ALL {
            let expected = Tensor::from_slice(&[0f32, 3e4]).view([1, 2]);
            assert_close("y", &forward(activation, &x), &expected, 0.0);
            let expected = Tensor::from_slice(&[0f32, 3.0, 0.0, 1e4]).view([1, 4]);
            assert_close("d_gate_up", &backward(activation, &d_y, &x), &expected, 0.0);
        }
    }
}
