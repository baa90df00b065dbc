//! The memory-bound parts of a linear layer's gradients. Its products are [`matmul`](crate::matmul)'s.

use crate::accumulate::Accumulate;
use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;

/// Elements that one task stores.
const BLOCK: usize = 1 << 14;
/// Columns that one task sums: their running sums stay in the first-level cache.
const COLUMNS: usize = 1024;
/// Rows that are summed before the sum is added to the total, which keeps rounding errors from growing with the rows.
const ROWS: usize = 64;

/// Writes or adds `value` to as many elements of a gradient.
///
/// # Panics
/// When the lengths differ.
pub fn store<T: Element>(gradient: &mut [f32], value: &[T], accumulate: Accumulate) {
    assert_eq!(gradient.len(), value.len(), "lengths differ");
    let blocks = gradient.chunks_mut(BLOCK).zip(value.chunks(BLOCK));
    dispatch::for_each(blocks.map(|(gradient, value)| Store {
        gradient,
        value,
        accumulate,
    }));
}

/// Writes or adds the column sums of `d_y [tokens, out]` to the gradient `[out]` of a bias.
///
/// # Panics
/// When `d_y` is not whole rows.
pub fn backward_bias<T: Element>(d_bias: &mut [f32], d_y: &[T], accumulate: Accumulate) {
    let columns = d_bias.len();
    assert!(
        d_y.len().is_multiple_of(columns),
        "{} elements are not rows of {columns}",
        d_y.len()
    );
    let parts = d_bias.chunks_mut(COLUMNS).enumerate();
    dispatch::for_each(parts.map(|(index, d_bias)| ColumnSums {
        d_bias,
        d_y,
        columns,
        start: index * COLUMNS,
        accumulate,
    }));
}

/// One task of [`store`].
pub(crate) struct Store<'a, T> {
    pub(crate) gradient: &'a mut [f32],
    pub(crate) value: &'a [T],
    pub(crate) accumulate: Accumulate,
}

impl<T: Element> Kernel for Store<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let pairs = self.gradient.iter_mut().zip(self.value);
        match self.accumulate {
            Accumulate::First => pairs.for_each(|(gradient, value)| *gradient = value.widen()),
            Accumulate::Add => pairs.for_each(|(gradient, value)| *gradient += value.widen()),
        }
    }
}

/// The sums of the columns from `start` on, as many as `d_bias` has.
struct ColumnSums<'a, T> {
    d_bias: &'a mut [f32],
    d_y: &'a [T],
    columns: usize,
    start: usize,
    accumulate: Accumulate,
}

impl<T: Element> Kernel for ColumnSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        if self.accumulate == Accumulate::First {
            self.d_bias.fill(0.0);
        }
        let mut partial = [0f32; COLUMNS];
        let partial = &mut partial[..self.d_bias.len()];
        for rows in self.d_y.chunks(ROWS * self.columns) {
            partial.fill(0.0);
            for row in rows.chunks_exact(self.columns) {
                for (sum, d) in partial.iter_mut().zip(&row[self.start..]) {
                    *sum += d.widen();
                }
            }
            for (total, partial) in self.d_bias.iter_mut().zip(partial.iter()) {
                *total += partial;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{assert_close, normal, numbers, wide};

    /// Around the blocks, and with no rows at all.
    fn gradients_are_stored_and_summed<T: Element>(kind: &str) {
        for (rows, columns) in [(0, 3), (1, 1), (64, 1024), (70, 1030), (129, 2500)] {
            for accumulate in [Accumulate::First, Accumulate::Add] {
                let label = format!("{kind}, {rows} x {columns}, {accumulate:?}");
                let value = numbers::<T>(rows * columns, 1, 1.0);
                let before = |len| match accumulate {
                    Accumulate::First => vec![f32::NAN; len],
                    Accumulate::Add => normal(len, 2),
                };
                let held = |before: &[f32]| match accumulate {
                    Accumulate::First => vec![0.0; before.len()],
                    Accumulate::Add => wide(before),
                };

                let mut gradient = before(value.len());
                let mut expected = held(&gradient);
                store(&mut gradient, &value, accumulate);
                for (expected, value) in expected.iter_mut().zip(wide(&value)) {
                    *expected = f64::from((*expected + value) as f32);
                }
                // One addition, rounded once.
                assert_close(&format!("store {label}"), &gradient, &expected, 0.0);

                let mut d_bias = before(columns);
                let mut expected = held(&d_bias);
                backward_bias(&mut d_bias, &value, accumulate);
                for row in wide(&value).chunks_exact(columns) {
                    for (sum, value) in expected.iter_mut().zip(row) {
                        *sum += value;
                    }
                }
                assert_close(&format!("bias {label}"), &d_bias, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn both_kinds_follow_the_formula() {
        gradients_are_stored_and_summed::<f32>("fp32");
        gradients_are_stored_and_summed::<bf16>("bf16");
    }

    #[test]
    fn nan_and_infinity_stay_in_their_column() {
        let mut d_bias = [0.0; 3];
        let d_y = [1.0, f32::INFINITY, f32::NAN, 2.0, 5.0, 0.0f32];
        backward_bias(&mut d_bias, &d_y, Accumulate::Add);
        assert_eq!(d_bias[..2], [3.0, f32::INFINITY]);
        assert!(d_bias[2].is_nan());
    }

    #[test]
    #[should_panic(expected = "not rows of 3")]
    fn a_row_that_is_cut_off_is_noticed() {
        backward_bias(&mut [0.0; 3], &[0f32; 7], Accumulate::Add);
    }
}
