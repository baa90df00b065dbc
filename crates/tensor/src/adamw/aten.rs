//! The update as tensor operations: for any device and layout, and the yardstick of the fused kernel.

use super::{AdamWState, AdamWStep, Coefficients};

/// As [`super::step`].
pub fn step(state: &AdamWState<'_>, step: &AdamWStep) {
    let c = Coefficients::new(step);
    let gradient = state.gradient * f64::from(c.scale);
    let (p, m, v) = (state.master, state.exp_avg, state.exp_avg_sq);
    m.mul_scalar_(step.beta1);
    m.add_(&(&gradient * (1.0 - step.beta1)));
    v.mul_scalar_(step.beta2);
    v.add_(&(gradient.square() * (1.0 - step.beta2)));
    let denominator = v.sqrt() * f64::from(c.inverse_root_correction2) + step.eps;
    p.mul_scalar_(f64::from(c.decay));
    p.sub_(&(m / denominator * f64::from(c.step_size)));
    if let Some(out) = state.compute {
        out.copy_(state.master);
    }
}
