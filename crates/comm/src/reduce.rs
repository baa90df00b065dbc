//! Element-wise reduction of several ranks' memory, in rank order.
//!
//! Works block by block: a block of the first source is widened into an accumulator that stays in the L1 cache, the other
//! sources are combined into it one after another, and the result is rounded once. The inner loops have no branches and
//! no bounds, so the compiler turns them into vector code; on x86-64 they are compiled again for AVX2 and AVX-512.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::collective::{Element, ReduceOp};

/// Elements of one block: 4 KiB of fp32, which leaves room in L1 for the sources.
const BLOCK: usize = 1024;

/// Reduces `elements` elements of every source into every target.
///
/// # Safety
/// Every source is valid for reads, and every target for writes, of `elements` elements, aligned for them. Nobody else
/// writes to the sources, or touches the targets, meanwhile. A target is either exactly a source or apart from all of them.
pub(crate) unsafe fn reduce(
    element: Element,
    op: ReduceOp,
    sources: &[*const u8],
    targets: &[*mut u8],
    elements: usize,
) {
    // SAFETY: passed on from the caller; each arm uses the type that `element` stands for.
    unsafe {
        match element {
            Element::F32 => by_op::<f32>(op, sources, targets, elements),
            Element::Bf16 => by_op::<bf16>(op, sources, targets, elements),
            Element::F16 => by_op::<f16>(op, sources, targets, elements),
            Element::F64 => by_op::<f64>(op, sources, targets, elements),
            Element::I64 => by_op::<i64>(op, sources, targets, elements),
            Element::I32 => by_op::<i32>(op, sources, targets, elements),
            Element::U8 => by_op::<u8>(op, sources, targets, elements),
        }
    }
}

/// # Safety
/// As [`reduce`], for elements of type `E`.
unsafe fn by_op<E: Reducible>(
    op: ReduceOp,
    sources: &[*const u8],
    targets: &[*mut u8],
    elements: usize,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        match op {
            ReduceOp::Sum => by_cpu::<E, Sum>(sources, targets, elements),
            ReduceOp::Max => by_cpu::<E, Max>(sources, targets, elements),
            ReduceOp::Min => by_cpu::<E, Min>(sources, targets, elements),
        }
    }
}

/// # Safety
/// As [`reduce`], for elements of type `E`.
unsafe fn by_cpu<E: Reducible, C: Combine>(
    sources: &[*const u8],
    targets: &[*mut u8],
    elements: usize,
) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512bw") && has!("avx512vl") {
            // SAFETY: the CPU has these instructions; the rest is passed on from the caller.
            unsafe { blocks_avx512::<E, C>(sources, targets, elements) };
            return;
        }
        if has!("avx2") {
            // SAFETY: as above.
            unsafe { blocks_avx2::<E, C>(sources, targets, elements) };
            return;
        }
    }
    // SAFETY: passed on from the caller.
    unsafe { blocks::<E, C>(sources, targets, elements) }
}

/// # Safety
/// As [`reduce`], and the CPU has these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn blocks_avx512<E: Reducible, C: Combine>(
    sources: &[*const u8],
    targets: &[*mut u8],
    elements: usize,
) {
    // SAFETY: passed on from the caller.
    unsafe { blocks::<E, C>(sources, targets, elements) }
}

/// # Safety
/// As [`reduce`], and the CPU has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn blocks_avx2<E: Reducible, C: Combine>(
    sources: &[*const u8],
    targets: &[*mut u8],
    elements: usize,
) {
    // SAFETY: passed on from the caller.
    unsafe { blocks::<E, C>(sources, targets, elements) }
}

/// # Safety
/// As [`reduce`], for elements of type `E`.
#[inline(always)]
unsafe fn blocks<E: Reducible, C: Combine>(
    sources: &[*const u8],
    targets: &[*mut u8],
    elements: usize,
) {
    let Some((first, others)) = sources.split_first() else {
        return;
    };
    let Some((target, copies)) = targets.split_first() else {
        return;
    };
    let mut wide = [E::Wide::default(); BLOCK];
    let mut start = 0;
    while start < elements {
        let len = BLOCK.min(elements - start);
        let wide = &mut wide[..len];
        // SAFETY: `start + len <= elements`, so by the caller's promise the memory is valid and aligned; the slices of
        // sources end before the first slice of a target begins, so no two of them alias.
        unsafe {
            E::widen(source::<E>(*first, start, len), wide);
            for other in others {
                E::combine::<C>(wide, source::<E>(*other, start, len));
            }
            let target = target.cast::<E>().add(start);
            E::narrow(wide, std::slice::from_raw_parts_mut(target, len));
            // Rounding once is cheaper than twice.
            for copy in copies {
                std::ptr::copy_nonoverlapping(target, copy.cast::<E>().add(start), len);
            }
        }
        start += len;
    }
}

/// # Safety
/// `memory` holds `start + len` readable, aligned elements of type `E` that nobody writes to meanwhile.
#[inline(always)]
unsafe fn source<'a, E>(memory: *const u8, start: usize, len: usize) -> &'a [E] {
    // SAFETY: passed on from the caller.
    unsafe { std::slice::from_raw_parts(memory.cast::<E>().add(start), len) }
}

/// The type that a reduction is done in.
trait Wide: Copy + Default {
    fn sum(a: Self, b: Self) -> Self;
    fn max(a: Self, b: Self) -> Self;
    fn min(a: Self, b: Self) -> Self;
}

/// How two elements become one, as a type, so that each reduction is compiled for itself.
trait Combine {
    fn combine<W: Wide>(a: W, b: W) -> W;
}

struct Sum;
struct Max;
struct Min;

impl Combine for Sum {
    #[inline(always)]
    fn combine<W: Wide>(a: W, b: W) -> W {
        W::sum(a, b)
    }
}

impl Combine for Max {
    #[inline(always)]
    fn combine<W: Wide>(a: W, b: W) -> W {
        W::max(a, b)
    }
}

impl Combine for Min {
    #[inline(always)]
    fn combine<W: Wide>(a: W, b: W) -> W {
        W::min(a, b)
    }
}

macro_rules! wide_floats {
    ($($wide:ty)*) => {$(
        // A comparison with NaN is false: an `a` that is NaN stays, and a `b` that is NaN is taken by the second test.
        impl Wide for $wide {
            #[inline(always)]
            fn sum(a: Self, b: Self) -> Self {
                a + b
            }

            #[inline(always)]
            fn max(a: Self, b: Self) -> Self {
                if b > a || b.is_nan() { b } else { a }
            }

            #[inline(always)]
            fn min(a: Self, b: Self) -> Self {
                if b < a || b.is_nan() { b } else { a }
            }
        }
    )*};
}

macro_rules! wide_integers {
    ($($wide:ty)*) => {$(
        impl Wide for $wide {
            #[inline(always)]
            fn sum(a: Self, b: Self) -> Self {
                a.wrapping_add(b)
            }

            #[inline(always)]
            fn max(a: Self, b: Self) -> Self {
                Ord::max(a, b)
            }

            #[inline(always)]
            fn min(a: Self, b: Self) -> Self {
                Ord::min(a, b)
            }
        }
    )*};
}

wide_floats!(f32 f64);
wide_integers!(i64 i32 u8);

/// An element type and the type its reduction is done in.
trait Reducible: Copy {
    type Wide: Wide;

    fn widen(source: &[Self], wide: &mut [Self::Wide]);
    fn combine<C: Combine>(wide: &mut [Self::Wide], source: &[Self]);
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
            *w = bf16_to_f32(*s);
        }
    }

    #[inline(always)]
    fn combine<C: Combine>(wide: &mut [f32], source: &[Self]) {
        for (w, s) in wide.iter_mut().zip(source) {
            *w = C::combine(*w, bf16_to_f32(*s));
        }
    }

    #[inline(always)]
    fn narrow(wide: &[f32], target: &mut [Self]) {
        for (t, w) in target.iter_mut().zip(wide) {
            // To nearest even, as libtorch rounds; without branches, unlike `bf16::from_f32`.
            let bits = w.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            *t = Self::from_bits(if w.is_nan() { 0x7fc0 } else { rounded as u16 });
        }
    }
}

#[inline(always)]
fn bf16_to_f32(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run<E: Copy>(element: Element, op: ReduceOp, sources: &[Vec<E>]) -> Vec<E> {
        let mut target = sources[0].clone();
        let mut second = sources[0].clone();
        let mut pointers: Vec<*const u8> = sources
            .iter()
            .map(|source| source.as_ptr().cast())
            .collect();
        // The first source is the first target too, as in an all-reduce in place.
        pointers[0] = target.as_ptr().cast();
        let targets = [target.as_mut_ptr().cast(), second.as_mut_ptr().cast()];
        // SAFETY: all vectors have one length, and target 0 is source 0.
        unsafe { reduce(element, op, &pointers, &targets, target.len()) };
        let bytes = |values: &[E]| {
            // SAFETY: the elements in this test are plain numbers.
            unsafe {
                std::slice::from_raw_parts(
                    values.as_ptr().cast::<u8>(),
                    std::mem::size_of_val(values),
                )
                .to_vec()
            }
        };
        assert_eq!(bytes(&target), bytes(&second));
        target
    }

    #[test]
    fn sums_are_in_rank_order_and_bf16_rounds_once() {
        let len = 2 * BLOCK + 3;
        let sources: Vec<Vec<f32>> = (0..3)
            .map(|rank| (0..len).map(|i| (i * 7 + rank) as f32 * 0.1).collect())
            .collect();
        let sum = run(Element::F32, ReduceOp::Sum, &sources);
        for i in 0..len {
            assert_eq!(sum[i], (sources[0][i] + sources[1][i]) + sources[2][i]);
        }
        let narrow: Vec<Vec<bf16>> = sources
            .iter()
            .map(|source| source.iter().map(|v| bf16::from_f32(*v)).collect())
            .collect();
        let sum = run(Element::Bf16, ReduceOp::Sum, &narrow);
        for i in 0..len {
            let exact = (narrow[0][i].to_f32() + narrow[1][i].to_f32()) + narrow[2][i].to_f32();
            assert_eq!(sum[i], bf16::from_f32(exact));
        }
        let half: Vec<Vec<f16>> = sources
            .iter()
            .map(|source| source.iter().map(|v| f16::from_f32(*v)).collect())
            .collect();
        let sum = run(Element::F16, ReduceOp::Sum, &half);
        for i in 0..len {
            let exact = (half[0][i].to_f32() + half[1][i].to_f32()) + half[2][i].to_f32();
            assert_eq!(sum[i], f16::from_f32(exact));
        }
    }

    #[test]
    fn extremes_keep_nan_and_integers_wrap() {
        let floats = [vec![1.0f32, f32::NAN, 2.0], vec![3.0, 0.0, f32::NAN]];
        let max = run(Element::F32, ReduceOp::Max, &floats);
        assert!(max[0] == 3.0 && max[1].is_nan() && max[2].is_nan());
        let min = run(Element::F32, ReduceOp::Min, &floats);
        assert!(min[0] == 1.0 && min[1].is_nan() && min[2].is_nan());
        let integers = [vec![i64::MAX, -5, 0], vec![1, 7, 0]];
        assert_eq!(
            run(Element::I64, ReduceOp::Sum, &integers),
            [i64::MIN, 2, 0]
        );
        assert_eq!(
            run(Element::I64, ReduceOp::Max, &integers),
            [i64::MAX, 7, 0]
        );
        let bytes = [vec![200u8, 1], vec![100, 2]];
        assert_eq!(run(Element::U8, ReduceOp::Sum, &bytes), [44, 3]);
        assert_eq!(run(Element::U8, ReduceOp::Min, &bytes), [100, 1]);
    }

    #[test]
    fn nan_survives_rounding_to_bf16() {
        let sources = [vec![bf16::NAN, bf16::MAX], vec![bf16::ONE, bf16::MAX]];
        let sum = run(Element::Bf16, ReduceOp::Sum, &sources);
        assert!(sum[0].is_nan() && sum[1].is_infinite());
    }
}
