//! The memory-bound parts of a linear layer's gradients as kernels.

use tch::Tensor;

use super::Accumulate;
use crate::cpu::element::{Element, is_plain, slice, slice_mut, with_element};
use crate::cpu::kernel::{self, InstructionSet, Kernel};

/// Elements that one task stores.
const BLOCK: usize = 1 << 14;
/// Columns that one task sums: their running sums stay in the first-level cache.
const COLUMNS: usize = 1024;
/// Rows that are summed before the sum is added to the total, which keeps rounding errors from growing with the rows.
const ROWS: usize = 64;

/// As [`super::store`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn store(gradient: &Tensor, value: &Tensor, accumulate: Accumulate) -> Option<()> {
    with_element!(value.kind(), T => {
        if !is_plain::<f32>(gradient) || !is_plain::<T>(value) || gradient.size() != value.size() {
            return None;
        }
        // SAFETY: a gradient buffer is never the source of what is stored in it.
        let blocks = unsafe { slice_mut::<f32>(gradient) }.chunks_mut(BLOCK);
        let blocks = blocks.zip(slice::<T>(value).chunks(BLOCK));
        kernel::for_each(blocks.map(|(gradient, value)| Store { gradient, value, accumulate }));
        Some(())
    })
}

/// As [`super::backward_bias`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn backward_bias(d_bias: &Tensor, d_y: &Tensor, accumulate: Accumulate) -> Option<()> {
    with_element!(d_y.kind(), T => {
        let columns = *d_y.size().get(1)?;
        let suits = is_plain::<f32>(d_bias) && is_plain::<T>(d_y) && d_bias.size() == [columns];
        if !suits || d_y.numel() == 0 {
            return None;
        }
        // SAFETY: the gradient of a bias is a buffer of its own, not a part of `d_y`.
        let parts = unsafe { slice_mut::<f32>(d_bias) }.chunks_mut(COLUMNS).enumerate();
        kernel::for_each(parts.map(|(index, d_bias)| ColumnSums {
            d_bias,
            d_y: slice::<T>(d_y),
            columns: columns as usize,
            start: index * COLUMNS,
            accumulate,
        }));
        Some(())
    })
}

/// Writes or adds `value` to as many elements of a gradient.
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
