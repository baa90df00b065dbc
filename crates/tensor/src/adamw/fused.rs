//! The update as a kernel: every state is read and written once, and the compute copy is written on the way.

use tandem_kernels::adamw::{self, State};

use super::{AdamWState, AdamWStep};
use crate::cpu::element::{Element, Stored, is_plain, slice, slice_mut};

/// As [`super::step`], with a compute copy of `C`s; `None`, with nothing written, where the kernel does not apply.
pub(super) fn step<C: Element + Stored>(state: &AdamWState<'_>, step: &AdamWStep) -> Option<()> {
    let length = state.master.numel();
    let states = [
        state.master,
        state.exp_avg,
        state.exp_avg_sq,
        state.gradient,
    ];
    let plain = states
        .iter()
        .all(|t| is_plain::<f32>(t) && t.numel() == length)
        && state
            .compute
            .is_none_or(|t| is_plain::<C>(t) && t.numel() == length);
    if !plain {
        return None;
    }
    // SAFETY: the tensors of an optimizer state are storages of their own, or ranges of one that do not overlap.
    let (slices, compute) = unsafe {
        (
            State {
                master: slice_mut::<f32>(state.master),
                exp_avg: slice_mut::<f32>(state.exp_avg),
                exp_avg_sq: slice_mut::<f32>(state.exp_avg_sq),
                gradient: slice::<f32>(state.gradient),
            },
            state.compute.map(|t| slice_mut::<C>(t)),
        )
    };
    adamw::step(slices, compute, step);
    Some(())
}
