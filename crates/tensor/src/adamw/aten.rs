//! The update as tensor operations: for any device and layout, and the yardstick of the fused kernel.

use super::{AdamWState, AdamWStep, Coefficients};

/// As [`super::step`].
pub fn step(state: &AdamWState<'_>, step: &AdamWStep) {
    let c = Coefficients::new(step);
    let gradient = state.gradient * f64::from(c.scale);
    let (mut p, mut m, mut v) = (
        state.master.shallow_clone(),
        state.exp_avg.shallow_clone(),
        state.exp_avg_sq.shallow_clone(),
    );
    let _ = m
        .g_mul_scalar_(step.beta1)
        .g_add_(&(&gradient * (1.0 - step.beta1)));
    let _ = v
        .g_mul_scalar_(step.beta2)
        .g_add_(&(gradient.square() * (1.0 - step.beta2)));
    let denominator = v.sqrt() * f64::from(c.inverse_root_correction2) + step.eps;
    let _ = p
        .g_mul_scalar_(f64::from(c.decay))
        .g_sub_(&(&m / denominator * f64::from(c.step_size)));
    if let Some(out) = state.compute {
        out.shallow_clone().copy_(state.master);
    }
}
