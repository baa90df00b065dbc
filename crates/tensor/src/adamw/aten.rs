//! The update through libtorch's fused operator: for any device and layout, and the yardstick of our kernel.

use tandem_torch::{AdamW, AdamWGuard, Tensor};

use super::{AdamWState, AdamWStep, UnreadNorm};

/// As [`super::step`].
pub fn step(state: &AdamWState<'_>, step: &AdamWStep) {
    // The operator would write the scaled gradient back, which is only to be read.
    let scaled = (step.gradient_scale != 1.0).then(|| state.gradient * step.gradient_scale);
    update(state, scaled.as_ref().unwrap_or(state.gradient), step, None);
}

/// As [`super::step_unread`].
pub(super) fn step_unread(state: &AdamWState<'_>, step: &AdamWStep, norm: &UnreadNorm) {
    let guard = AdamWGuard {
        divisor: norm.divisor.as_ref(),
        skip: &norm.skip,
    };
    update(state, state.gradient, step, Some(guard));
}

fn update(
    state: &AdamWState<'_>,
    gradient: &Tensor,
    step: &AdamWStep,
    guard: Option<AdamWGuard<'_>>,
) {
    let settings = AdamW {
        learning_rate: step.learning_rate,
        beta1: step.beta1,
        beta2: step.beta2,
        weight_decay: step.weight_decay,
        eps: step.eps,
        step: step.step,
    };
    let (exp_avg, exp_avg_sq) = (state.exp_avg, state.exp_avg_sq);
    state
        .master
        .adamw_(gradient, exp_avg, exp_avg_sq, &settings, guard);
    if let Some(out) = state.compute {
        out.copy_(state.master);
    }
}
