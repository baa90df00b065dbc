//! Gated linear units as tensor operations: for any device, kind and layout, and the yardstick of the fused kernels.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use tandem_torch::{Kind, Tensor};

use super::Activation;

/// The cube's coefficient in GELU's approximation.
const CUBE: f64 = 0.044_715;

/// As [`super::forward`]; the activation is rounded to the kind of `gate_up` before the product.
pub fn forward(activation: Activation, gate_up: &Tensor) -> Tensor {
    let (gate, up) = halves(gate_up);
    let activated = match activation {
        Activation::Silu => gate.silu(),
        _ => activated(activation, &gate.to_kind(Kind::Float)).to_kind(gate.kind()),
    };
    activated * up
}

/// `activation(x)` in the kind of `x`, which has the digits for it.
pub(super) fn activated(activation: Activation, x: &Tensor) -> Tensor {
    match activation {
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x * twice_inner(x).sigmoid(),
        Activation::Gelu => x * normal_distribution(x),
    }
}

/// `2 u` where `1 + tanh u` is twice GELU's approximate factor: the sigmoid of `2 u` is that factor.
fn twice_inner(x: &Tensor) -> Tensor {
    let root = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
    x * ((x.square() * CUBE + 1.0) * (2.0 * root))
}

fn normal_distribution(x: &Tensor) -> Tensor {
    ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5
}

/// The activation and its derivative, fp32.
fn value_and_slope(activation: Activation, x: &Tensor) -> (Tensor, Tensor) {
    match activation {
        Activation::Silu => {
            let sigmoid = x.sigmoid();
            let silu = x * &sigmoid;
            let slope = &sigmoid * (1.0 + x - &silu);
            (silu, slope)
        }
        Activation::GeluTanh => {
            let sigmoid = twice_inner(x).sigmoid();
            let value = x * &sigmoid;
            let root = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
            let inner_slope = (x.square() * (3.0 * CUBE) + 1.0) * (2.0 * root);
            // `1 - sigmoid(2 u)` is `sigmoid(-2 u)`.
            let rest = (twice_inner(x) * -1.0).sigmoid();
            let slope = &sigmoid + &value * rest * inner_slope;
            (value, slope)
        }
        Activation::Gelu => {
            let below = normal_distribution(x);
            let density = (x.square() * -0.5).exp() * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
            let slope = &below + x * density;
            (x * below, slope)
        }
    }
}

/// As [`super::backward`]. SwiGLU has operators of libtorch, whose arithmetic is in fp32; what passes between them is rounded to the kind
/// of `gate_up`.
pub fn backward(activation: Activation, d_y: &Tensor, gate_up: &Tensor) -> Tensor {
    if has_operators(activation, d_y, gate_up) {
        let (gate, _) = halves(gate_up);
        return silu_backward(d_y, gate_up, &gate.silu());
    }
    let (gate, up) = halves(gate_up);
    let d_gate_up = gate_up.empty_like();
    let (gate, up) = (gate.to_kind(Kind::Float), up.to_kind(Kind::Float));
    let d_y = d_y.to_kind(Kind::Float);
    let (value, slope) = value_and_slope(activation, &gate);
    let (d_gate, d_up) = halves(&d_gate_up);
    d_gate.copy_(&(&d_y * up * slope));
    d_up.copy_(&(d_y * value));
    d_gate_up
}

/// As [`super::forward_and_backward`]: the activated gate, where there is an operator for it, is computed once.
pub fn forward_and_backward(
    activation: Activation,
    d_y: &Tensor,
    gate_up: &Tensor,
) -> (Tensor, Tensor) {
    if has_operators(activation, d_y, gate_up) {
        let (gate, up) = halves(gate_up);
        let activated = gate.silu();
        let d_gate_up = silu_backward(d_y, gate_up, &activated);
        return (activated * up, d_gate_up);
    }
    let y = forward(activation, gate_up);
    (y, backward(activation, d_y, gate_up))
}

fn has_operators(activation: Activation, d_y: &Tensor, gate_up: &Tensor) -> bool {
    activation == Activation::Silu && d_y.kind() == gate_up.kind()
}

fn silu_backward(d_y: &Tensor, gate_up: &Tensor, activated: &Tensor) -> Tensor {
    let (gate, up) = halves(gate_up);
    let d_gate_up = gate_up.empty_like();
    let (d_gate, d_up) = halves(&d_gate_up);
    gate.silu_backward_into(&(d_y * up), &d_gate);
    d_y.mul_into(activated, &d_up);
    d_gate_up
}

fn halves(gate_up: &Tensor) -> (Tensor, Tensor) {
    let features = gate_up.size()[1] / 2;
    (
        gate_up.narrow(1, 0, features),
        gate_up.narrow(1, features, features),
    )
}
