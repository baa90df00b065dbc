//! SwiGLU (Shazeer, arXiv 2002.05202): `silu(gate) * up`, over one fused `[tokens, 2 * features]` projection.

use tch::{Kind, Tensor};

/// `silu(gate) * up`. `gate_up` is `[tokens, 2 * features]`, gate first; the result is `[tokens, features]`.
pub fn forward(gate_up: &Tensor) -> Tensor {
    let (gate, up) = halves(gate_up);
    gate.silu() * up
}

/// The gradient of [`forward`] with respect to `gate_up`, in its shape and kind; fp32 inside.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, randn};

    #[test]
    fn matches_autograd() {
        let x = randn(&[7, 10], 1);
        let d_y = randn(&[7, 5], 2);
        let xa = x.copy().set_requires_grad(true);
        let ya = xa.narrow(1, 0, 5).silu() * xa.narrow(1, 5, 5);
        (&ya * &d_y).sum(Kind::Float).backward();
        assert_close("y", &forward(&x), &ya.detach(), 1e-6);
        assert_close("d_gate_up", &backward(&d_y, &x), &xa.grad(), 1e-5);
    }
}
