//! SwiGLU as tensor operations: for any device, kind and layout, and the yardstick of the fused kernels.

use tandem_torch::{Kind, Tensor};

/// As [`super::forward`]; `silu(gate)` is rounded to the kind of `gate_up` before the product.
pub fn forward(gate_up: &Tensor) -> Tensor {
    let (gate, up) = halves(gate_up);
    gate.silu() * up
}

/// As [`super::backward`].
pub fn backward(d_y: &Tensor, gate_up: &Tensor) -> Tensor {
    let (gate, up) = halves(gate_up);
    let features = gate.size()[1];
    let (gate, up) = (gate.to_kind(Kind::Float), up.to_kind(Kind::Float));
    let d_y = d_y.to_kind(Kind::Float);
    let sigmoid = gate.sigmoid();
    let silu = &gate * &sigmoid;
    let d_gate = &d_y * up * (&sigmoid * (1.0 + &gate - &silu));
    let d_up = d_y * silu;
    let d_gate_up = gate_up.empty_like();
    d_gate_up.narrow(1, 0, features).copy_(&d_gate);
    d_gate_up.narrow(1, features, features).copy_(&d_up);
    d_gate_up
}

fn halves(gate_up: &Tensor) -> (Tensor, Tensor) {
    let features = gate_up.size()[1] / 2;
    (
        gate_up.narrow(1, 0, features),
        gate_up.narrow(1, features, features),
    )
}
