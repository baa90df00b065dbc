//! The kinds of elements that can be reduced, and the types that this is done in.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::BLOCK;
use super::combine::{Combine, Wide};
use crate::element::Element;

/// An element type and the type its reduction is done in: fp32 for the halves, else its own. Slices have at most a block of
/// elements, and two of them equally many.
pub trait Reducible: Copy {
    /// What a reduction is done in.
    type Wide: Wide;

    /// Exact.
    fn widen(source: &[Self], wide: &mut [Self::Wide]);
    /// The elements of `a`, which is of the earlier rank, each with that of `b`: what [`Self::widen`] and [`Self::combine`] do, in
    /// one pass.
    #[inline(always)]
    fn widen_combined<C: Combine>(a: &[Self], b: &[Self], wide: &mut [Self::Wide]) {
        Self::widen(a, wide);
        Self::combine::<C>(wide, b);
    }
    /// Combines every element of `source` into `wide`.
    fn combine<C: Combine>(wide: &mut [Self::Wide], source: &[Self]);
    /// Rounds to nearest even.
    fn narrow(wide: &[Self::Wide], target: &mut [Self]);
}

macro_rules! reducible_as_itself {
    ($($element:ty)*) => {$(
        impl Reducible for $element {
            type Wide = Self;

            #[inline(always)]
            fn widen(source: &[Self], wide: &mut [Self]) {
                wide.copy_from_slice(source);
            }

            #[inline(always)]
            fn widen_combined<C: Combine>(a: &[Self], b: &[Self], wide: &mut [Self]) {
                for ((wide, a), b) in wide.iter_mut().zip(a).zip(b) {
                    *wide = C::combine(*a, *b);
                }
            }

            #[inline(always)]
            fn combine<C: Combine>(wide: &mut [Self], source: &[Self]) {
                for (a, b) in wide.iter_mut().zip(source) {
                    *a = C::combine(*a, *b);
                }
            }

            #[inline(always)]
            fn narrow(wide: &[Self], target: &mut [Self]) {
                target.copy_from_slice(wide);
            }
        }
    )*};
}

reducible_as_itself!(f32 f64 i64 i32 u8);

impl Reducible for bf16 {
    type Wide = f32;

    #[inline(always)]
    fn widen(source: &[Self], wide: &mut [f32]) {
        for (w, s) in wide.iter_mut().zip(source) {
            *w = s.widen();
        }
    }

    #[inline(always)]
    fn widen_combined<C: Combine>(a: &[Self], b: &[Self], wide: &mut [f32]) {
        for ((wide, a), b) in wide.iter_mut().zip(a).zip(b) {
            *wide = C::combine(a.widen(), b.widen());
        }
    }

    #[inline(always)]
    fn combine<C: Combine>(wide: &mut [f32], source: &[Self]) {
        for (w, s) in wide.iter_mut().zip(source) {
            *w = C::combine(*w, s.widen());
        }
    }

    #[inline(always)]
    fn narrow(wide: &[f32], target: &mut [Self]) {
        for (t, w) in target.iter_mut().zip(wide) {
            *t = Element::round(*w);
        }
    }
}

impl Reducible for f16 {
    type Wide = f32;

    // The slice conversions of `half` pick the CPU's own instructions at run time.
    #[inline(always)]
    fn widen(source: &[Self], wide: &mut [f32]) {
        source.convert_to_f32_slice(wide);
    }

    #[inline(always)]
    fn combine<C: Combine>(wide: &mut [f32], source: &[Self]) {
        let mut widened = [0f32; BLOCK];
        let widened = &mut widened[..source.len()];
        source.convert_to_f32_slice(widened);
        for (a, b) in wide.iter_mut().zip(widened) {
            *a = C::combine(*a, *b);
        }
    }

    #[inline(always)]
    fn narrow(wide: &[f32], target: &mut [Self]) {
        target.convert_from_f32_slice(wide);
    }
}
