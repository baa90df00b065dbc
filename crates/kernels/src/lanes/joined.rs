//! Sums and maxima in an order that vectors can follow and that depends on nothing but the length.
//!
//! Element `i` goes to lane `i % LANES`, and at the end the lanes are joined in pairs: the result is the same for any
//! instruction set and any number of threads.

use super::{LANES, Lanes, by_lanes};
use crate::element::Element;
use crate::instruction_set::InstructionSet;

/// The sum of `term(a)` in fp32; `term` of 0 is 0.
#[inline(always)]
pub(crate) fn sum<I: InstructionSet, A: Element>(
    a: &[A],
    term: impl Fn(Lanes<I>) -> Lanes<I>,
) -> f32 {
    let mut sums = Lanes::from(0.0);
    by_lanes!(a.len(), [a], [] => {
        sums += term(Lanes::load(a));
    });
    sums.total()
}

/// The sum of `a b`, element by element, in fp32. Both are of equal length.
#[inline(always)]
pub(crate) fn dot<I: InstructionSet, A: Element, B: Element>(a: &[A], b: &[B]) -> f32 {
    let mut sums = Lanes::<I>::from(0.0);
    by_lanes!(a.len(), [a, b], [] => {
        sums += Lanes::load(a) * Lanes::load(b);
    });
    sums.total()
}

/// The sum of `a b c`, element by element, in fp32. All three are of equal length.
#[inline(always)]
pub(crate) fn sum_of_products<I: InstructionSet, A: Element, B: Element>(
    a: &[A],
    b: &[B],
    c: &[f32],
) -> f32 {
    let mut sums = Lanes::<I>::from(0.0);
    by_lanes!(a.len(), [a, b, c], [] => {
        sums += Lanes::load(a) * Lanes::load(b) * Lanes::load(c);
    });
    sums.total()
}

/// The largest of `values`, `-inf` where there is none. NaN is passed over.
#[inline(always)]
pub(crate) fn max<I: InstructionSet, A: Element>(values: &[A]) -> f32 {
    let mut largest = Lanes::<I>::from(f32::NEG_INFINITY);
    by_lanes!(values.len(), [values], [] => {
        let values = Lanes::<I>::load_padded(values, f32::NEG_INFINITY);
        for (largest, value) in largest.0.iter_mut().zip(&values.0) {
            *largest = larger(*value, *largest);
        }
    });
    join(largest, larger)
}

/// One instruction, unlike `f32::max`; `b` where `a` is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl<I: InstructionSet> Lanes<I> {
    /// The sum of all lanes, as [`sum`] joins them.
    #[inline(always)]
    pub(crate) fn total(self) -> f32 {
        join(self, |a, b| a + b)
    }
}

/// The lanes of the upper half are joined to those of the lower, and so on.
#[inline(always)]
fn join<I: InstructionSet>(lanes: Lanes<I>, pair: impl Fn(f32, f32) -> f32) -> f32 {
    const QUARTER: usize = LANES / 4;
    let lane = |lane| lanes.get(lane);
    let mut left = [0.0; QUARTER];
    // The first two halvings at once, for as many lanes as a vector has.
    for (i, left) in left.iter_mut().enumerate() {
        let first = pair(lane(i), lane(i + 2 * QUARTER));
        let second = pair(lane(i + QUARTER), lane(i + 3 * QUARTER));
        *left = pair(first, second);
    }
    let mut width = QUARTER / 2;
    while width > 0 {
        for lane in 0..width {
            left[lane] = pair(left[lane], left[lane + width]);
        }
        width /= 2;
    }
    left[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{Kernel, testing::run_on_each_set};

    struct All<'a> {
        values: &'a [f32],
        ones: &'a [f32],
    }

    impl Kernel for All<'_> {
        type Output = [f32; 4];

        #[inline(always)]
        fn run<I: InstructionSet>(self) -> [f32; 4] {
            [
                sum::<I, _>(self.values, |x| x),
                sum_of_products::<I, _, _>(self.values, self.ones, self.ones),
                dot::<I, _, _>(self.values, self.ones),
                max::<I, _>(self.values),
            ]
        }
    }

    #[test]
    fn every_length_counts_every_element_once() {
        for len in [0usize, 1, 63, 64, 65, 191, 1000] {
            let values: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            let ones = vec![1f32; len];
            let total: f32 = values.iter().sum();
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (values, ones) = (&values[..], &ones[..]);
            for (set, results) in run_on_each_set(|| All { values, ones }) {
                assert_eq!(results, [total, total, total, largest], "{set}, {len}");
            }
        }
    }

    #[test]
    fn the_largest_is_no_nan() {
        let (values, ones) = (&[1.0, f32::NAN, 0.5][..], &[1.0; 3][..]);
        for (set, results) in run_on_each_set(|| All { values, ones }) {
            assert_eq!(results[3], 1.0, "{set}");
        }
    }
}
