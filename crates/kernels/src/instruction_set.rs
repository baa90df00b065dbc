//! What differs from processor to processor in the arithmetic of kernels.

use crate::element::Element;

/// Numbers that a kernel takes through a computation together: four of the widest vectors.
pub(crate) const LANES: usize = 64;

/// What a kernel may know of the processor.
pub(crate) trait InstructionSet: Copy {
    /// Whether a fused multiply-add is one instruction; where it is not, it would be a slow library call.
    const FUSES: bool;

    /// `a * b + c`, with one rounding where that is fast.
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        if Self::FUSES {
            a.mul_add(b, c)
        } else {
            a * b + c
        }
    }

    /// [`Element::round`] of all `values`, with the processor's own instruction where it has one: then what is smaller than every
    /// normal number becomes 0, as it does in products of matrices.
    #[inline(always)]
    fn round<T: Element>(values: &[f32; LANES], rounded: &mut [T; LANES]) {
        round_each(values, rounded);
    }
}

/// [`Element::round`] of all `values`.
#[inline(always)]
pub(crate) fn round_each<T: Element>(values: &[f32; LANES], rounded: &mut [T; LANES]) {
    for (rounded, value) in rounded.iter_mut().zip(values) {
        *rounded = T::round(*value);
    }
}
