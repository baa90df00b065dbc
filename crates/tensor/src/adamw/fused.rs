//! The update as a kernel: every state is read and written once, and the compute copy is written on the way.

use super::{AdamWState, AdamWStep, Coefficients};
use crate::cpu::element::{Element, is_plain, slice, slice_mut};
use crate::cpu::kernel::{self, InstructionSet, Kernel};

/// Elements that one task updates.
const BLOCK: usize = 1 << 14;

/// As [`super::step`], with a compute copy of `C`s; `None`, with nothing written, where the kernel does not apply.
pub(super) fn step<C: Element>(state: &AdamWState<'_>, step: &AdamWStep) -> Option<()> {
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
    let coefficients = Coefficients::new(step);
    // SAFETY: the tensors of an optimizer state are storages of their own, or ranges of one that do not overlap.
    let (master, exp_avg, exp_avg_sq, compute) = unsafe {
        (
            slice_mut::<f32>(state.master),
            slice_mut::<f32>(state.exp_avg),
            slice_mut::<f32>(state.exp_avg_sq),
            state.compute.map(|t| slice_mut::<C>(t)).unwrap_or_default(),
        )
    };
    // Endless empty slices where there is no copy.
    let compute = compute
        .chunks_mut(BLOCK)
        .chain(std::iter::repeat_with(Default::default));
    let blocks = master
        .chunks_mut(BLOCK)
        .zip(exp_avg.chunks_mut(BLOCK))
        .zip(exp_avg_sq.chunks_mut(BLOCK))
        .zip(slice::<f32>(state.gradient).chunks(BLOCK))
        .zip(compute);
    kernel::for_each(blocks.map(
        |((((master, exp_avg), exp_avg_sq), gradient), compute)| Update {
            coefficients: &coefficients,
            master,
            exp_avg,
            exp_avg_sq,
            gradient,
            compute,
        },
    ));
    Some(())
}

struct Update<'a, C> {
    coefficients: &'a Coefficients,
    master: &'a mut [f32],
    exp_avg: &'a mut [f32],
    exp_avg_sq: &'a mut [f32],
    gradient: &'a [f32],
    /// Empty where there is no copy.
    compute: &'a mut [C],
}

impl<C: Element> Kernel for Update<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let c = self.coefficients;
        let states = self
            .master
            .iter_mut()
            .zip(self.exp_avg)
            .zip(self.exp_avg_sq)
            .zip(self.gradient);
        if self.compute.is_empty() {
            states.for_each(|(((p, m), v), &g)| c.update(p, m, v, g));
        } else {
            for ((((p, m), v), &g), compute) in states.zip(self.compute) {
                c.update(p, m, v, g);
                *compute = C::round(*p);
            }
        }
    }
}

impl Coefficients {
    #[inline(always)]
    fn update(&self, p: &mut f32, m: &mut f32, v: &mut f32, g: f32) {
        let g = g * self.scale;
        *m += (g - *m) * (1.0 - self.beta1);
        *v = *v * self.beta2 + (g * g) * (1.0 - self.beta2);
        let denominator = v.sqrt() * self.inverse_root_correction2 + self.eps;
        *p = *p * self.decay - self.step_size * *m / denominator;
    }
}
