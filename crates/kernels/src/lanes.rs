//! Sums and maxima in an order that vectors can follow and that depends on nothing but the length.
//!
//! Element `i` goes to lane `i % LANES`, and at the end the lanes are joined in pairs: the result is the same for any
//! instruction set and any number of threads.

use crate::element::Element;

/// Partial results that one loop keeps: four of the widest vectors, so that additions overlap.
const LANES: usize = 64;

/// The sum of `term(a)` in fp32.
#[inline(always)]
pub(crate) fn sum<A: Element>(a: &[A], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for a in chunks {
        for (lane, a) in lanes.iter_mut().zip(a) {
            *lane += term(a.widen());
        }
    }
    for (lane, a) in lanes.iter_mut().zip(rest) {
        *lane += term(a.widen());
    }
    join(lanes, |a, b| a + b)
}

/// The sum of `a b`, element by element, in fp32. Both are of equal length.
#[inline(always)]
pub(crate) fn dot<A: Element, B: Element>(a: &[A], b: &[B]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a.widen() * b.widen();
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a.widen() * b.widen();
    }
    join(lanes, |a, b| a + b)
}

/// The sum of `a b c`, element by element, in fp32. All three are of equal length.
#[inline(always)]
pub(crate) fn sum_of_products<A: Element, B: Element>(a: &[A], b: &[B], c: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((a, a_rest), (b, b_rest), (c, c_rest)) = (
        a.as_chunks::<LANES>(),
        b.as_chunks::<LANES>(),
        c.as_chunks::<LANES>(),
    );
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for (((lane, a), b), c) in lanes.iter_mut().zip(a).zip(b).zip(c) {
            *lane += a.widen() * b.widen() * c;
        }
    }
    for (((lane, a), b), c) in lanes.iter_mut().zip(a_rest).zip(b_rest).zip(c_rest) {
        *lane += a.widen() * b.widen() * c;
    }
    join(lanes, |a, b| a + b)
}

/// The largest of `values`, `-inf` where there is none. NaN is passed over.
#[inline(always)]
pub(crate) fn max<A: Element>(values: &[A]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for values in chunks {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = larger(value.widen(), *lane);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = larger(value.widen(), *lane);
    }
    join(lanes, larger)
}

/// One instruction, unlike `f32::max`; `b` where `a` is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn join(mut lanes: [f32; LANES], pair: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = pair(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_counts_every_element_once() {
        for len in [0usize, 1, 63, 64, 65, 191, 1000] {
            let values: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            let ones = vec![1f32; len];
            let total: f32 = values.iter().sum();
            assert_eq!(sum(&values, |x| x), total);
            assert_eq!(sum_of_products(&values, &ones, &ones), total);
            assert_eq!(dot(&values, &ones), total);
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&values), largest);
        }
        assert_eq!(max(&[1.0, f32::NAN, 0.5]), 1.0);
    }
}
