//! Dropout (Srivastava et al., JMLR 15:56, 2014) whose choices are a function of the element, whoever computes it and however often.

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;
use crate::random::Uniform;

/// Which elements of a matrix of tokens are dropped.
#[derive(Debug, Clone, Copy)]
pub struct Mask {
    /// What decides.
    pub random: Uniform,
    /// Of being dropped, from 0 to below 1.
    pub probability: f32,
    /// The number of the first element; those of a row follow each other.
    pub start: u64,
    /// From the number of a row's first element to that of the next.
    pub stride: u64,
}

impl Mask {
    /// What the elements that stay are multiplied with, so that sums stay what they were on average.
    fn factor(&self) -> f32 {
        (1.0 / (1.0 - f64::from(self.probability))) as f32
    }
}

/// Fills `y` with the rows of `x [rows, columns]` less what is dropped.
///
/// # Panics
/// When sizes do not fit.
pub fn forward<T: Element>(x: &[T], columns: usize, mask: Mask, y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "as many elements");
    for_rows(x, columns, mask, y, false);
}

/// Adds the rows of `x [rows, columns]` less what is dropped to those of `sum`.
///
/// # Panics
/// When sizes do not fit.
pub fn add<T: Element>(x: &[T], columns: usize, mask: Mask, sum: &mut [T]) {
    assert_eq!(x.len(), sum.len(), "as many elements");
    for_rows(x, columns, mask, sum, true);
}

fn for_rows<T: Element>(x: &[T], columns: usize, mask: Mask, y: &mut [T], adds: bool) {
    if x.is_empty() {
        return;
    }
    assert!(x.len().is_multiple_of(columns), "whole rows");
    let rows = x.chunks_exact(columns).zip(y.chunks_exact_mut(columns));
    dispatch::for_each(rows.zip(0u64..).map(|((x, y), row)| Row {
        x,
        y,
        mask: Mask {
            start: mask.start + row * mask.stride,
            ..mask
        },
        adds,
    }));
}

struct Row<'a, T> {
    x: &'a [T],
    y: &'a mut [T],
    mask: Mask,
    adds: bool,
}

impl<T: Element> Kernel for Row<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let (mask, factor) = (self.mask, self.mask.factor());
        let elements = self.y.iter_mut().zip(self.x);
        for ((y, x), index) in elements.zip(mask.start..) {
            let kept = match mask.random.at(index) < mask.probability {
                true => 0.0,
                false => factor,
            };
            // Not rounded in between where it is added.
            let before = if self.adds { y.widen() } else { 0.0 };
            *y = T::round(I::mul_add(x.widen(), kept, before));
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::random;
    use crate::testing::{assert_close, numbers, wide};

    fn drops<T: Element>(tolerance: f64) {
        let (rows, columns) = (5, 37);
        let x = numbers::<T>(rows * columns, 1, 1.0);
        let mask = Mask {
            random: Uniform::new(7, "mask"),
            probability: 0.3,
            start: 1000,
            stride: 1 << 20,
        };
        let mut expected = Vec::new();
        for (row, x) in wide(&x).chunks_exact(columns).enumerate() {
            let mut uniform = vec![0f32; columns];
            let start = 1000 + ((row as u64) << 20);
            random::fill_uniform(&mut uniform, 7, "mask", start);
            let kept = x.iter().zip(uniform);
            expected.extend(kept.map(|(x, u)| if u < 0.3 { 0.0 } else { x / 0.7 }));
        }
        let dropped = expected.iter().filter(|x| **x == 0.0).count();
        assert!((35..75).contains(&dropped), "{dropped} of 185");
        let mut y = vec![T::round(f32::NAN); x.len()];
        forward(&x, columns, mask, &mut y);
        assert_close("forward", &y, &expected, tolerance);
        let mut sum = numbers::<T>(rows * columns, 2, 1.0);
        for (expected, before) in expected.iter_mut().zip(wide(&sum)) {
            *expected += before;
        }
        add(&x, columns, mask, &mut sum);
        assert_close("add", &sum, &expected, tolerance);
    }

    #[test]
    fn what_is_dropped_is_a_function_of_the_element() {
        drops::<f32>(1e-6);
        drops::<bf16>(4e-3);
    }

    #[test]
    #[should_panic(expected = "whole rows")]
    fn a_row_that_is_cut_off_is_noticed() {
        let mask = Mask {
            random: Uniform::new(0, ""),
            probability: 0.5,
            start: 0,
            stride: 1,
        };
        forward(&[0f32; 7], 3, mask, &mut [0.0; 7]);
    }
}
