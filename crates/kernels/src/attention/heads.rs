//! `[batch, seq, heads, head_dim]` as heads: matrices `[seq, head_dim]` in bf16.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::rows::StoreRows;
use crate::dispatch;
use crate::matmul::MatrixView;

/// `[batch, seq, heads, head_dim]` in a slice, as it may lie in a wider buffer: the elements of one head of one position are
/// together, all else may be apart.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    data: &'a [bf16],
    size: [usize; 4],
    strides: [usize; 3],
}

impl<'a> Heads<'a> {
    /// `size` is `[batch, seq, heads, head_dim]`, `strides` how far the batch rows, positions and heads are apart.
    ///
    /// # Panics
    /// When the last element is not in `data`.
    pub fn new(data: &'a [bf16], size: [usize; 4], strides: [usize; 3]) -> Self {
        let dim = size[3];
        let others = size.iter().zip(strides);
        let last = others.map(|(size, stride)| size.checked_sub(1)?.checked_mul(stride));
        let start = last.reduce(|a, b| a?.checked_add(b?)).flatten();
        let end = start.and_then(|start| start.checked_add(dim));
        assert!(
            size.contains(&0) || end.is_some_and(|end| end <= data.len()),
            "heads {size:?} with strides {strides:?} are not in {} elements",
            data.len()
        );
        Self {
            data,
            size,
            strides,
        }
    }

    /// The same for heads that lie one after another.
    ///
    /// # Panics
    /// When `data` is too short.
    pub fn plain(data: &'a [bf16], size: [usize; 4]) -> Self {
        let [_, seq, heads, dim] = size;
        Self::new(data, size, [seq * heads * dim, heads * dim, dim])
    }

    pub(super) fn size(&self) -> [usize; 4] {
        self.size
    }

    /// A head of a batch row, counted through all of them: the heads of the first batch row, then those of the second.
    pub(super) fn head(&self, index: usize) -> Head<'a> {
        let [_, seq, heads, dim] = self.size;
        let [batch_stride, row, head_stride] = self.strides;
        let start = index / heads * batch_stride + index % heads * head_stride;
        Head {
            data: &self.data[start..],
            seq,
            row,
            dim,
        }
    }
}

/// One head.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    data: &'a [bf16],
    seq: usize,
    row: usize,
    dim: usize,
}

impl<'a> Head<'a> {
    /// Its rows are positions; sums run over the head's dimensions.
    pub(super) fn positions(&self, which: Range<usize>) -> MatrixView<'a> {
        assert!(which.end <= self.seq);
        let data = &self.data[which.start * self.row..];
        MatrixView::new(data, which.len(), self.dim, self.row, 1)
    }

    /// Its rows are the head's dimensions; sums run over positions.
    pub(super) fn dimensions(&self, which: Range<usize>) -> MatrixView<'a> {
        self.positions(which).transposed()
    }

    pub(super) fn row(&self, position: usize) -> &'a [bf16] {
        &self.data[position * self.row..][..self.dim]
    }
}

/// One head of a result `[batch, seq, heads, head_dim]` whose elements lie one after another: to be written by one task, while
/// others write the other heads.
pub(super) struct HeadMut<'a> {
    data: *mut bf16,
    seq: usize,
    row: usize,
    dim: usize,
    borrowed: PhantomData<&'a mut [bf16]>,
}

// SAFETY: it stands for elements that are borrowed mutably, and that no other head has.
unsafe impl Send for HeadMut<'_> {}

impl<'a> HeadMut<'a> {
    /// All heads of `data`: those of the first batch row, then those of the second.
    ///
    /// # Panics
    /// When `data` has another size.
    pub(super) fn all(data: &'a mut [bf16], size: [usize; 4]) -> impl Iterator<Item = HeadMut<'a>> {
        let [batch, seq, heads, dim] = size;
        let row = heads * dim;
        assert_eq!(data.len(), batch * seq * row, "a result {size:?}");
        data.chunks_exact_mut(seq * row).flat_map(move |data| {
            let data = data.as_mut_ptr();
            (0..heads).map(move |head| HeadMut {
                data: data.wrapping_add(head * dim),
                seq,
                row,
                dim,
                borrowed: PhantomData,
            })
        })
    }

    /// Writes whole rows of fp32 sums, rounded, to the positions from `first` on; the row `i` is multiplied by `factor(i)`.
    pub(super) fn store(&mut self, first: usize, sums: &[f32], factor: impl Fn(usize) -> f32) {
        let rows = sums.len() / self.dim;
        assert!(first <= self.seq && rows <= self.seq - first);
        let rows = sums.chunks_exact(self.dim).enumerate().map(|(row, sums)| {
            let place = self.data.wrapping_add((first + row) * self.row);
            // SAFETY: the position exists, and its `dim` elements of this head are this value's alone.
            let out = unsafe { std::slice::from_raw_parts_mut(place, self.dim) };
            (out, sums, factor(row))
        });
        dispatch::run(StoreRows(rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "are not in 23 elements")]
    fn heads_beyond_the_slice_are_noticed() {
        Heads::plain(&[bf16::ZERO; 23], [2, 3, 2, 2]);
    }

    /// Every element of the result belongs to one head.
    #[test]
    fn heads_are_apart_and_whole() {
        let size = [2, 3, 2, 5];
        let mut data = vec![bf16::NAN; size.iter().product()];
        for (index, mut head) in HeadMut::all(&mut data, size).enumerate() {
            head.store(0, &[1.0; 10], |row| (10 * index + row) as f32);
            head.store(2, &[1.0; 5], |_| (10 * index + 2) as f32);
        }
        for (index, row) in (0..4).flat_map(|index| (0..3).map(move |row| (index, row))) {
            let expected = bf16::from_f32((10 * index + row) as f32);
            assert_eq!(
                Heads::plain(&data, size).head(index).row(row),
                [expected; 5]
            );
        }
    }

    #[test]
    #[should_panic(expected = "rows <= self.seq - first")]
    fn rows_behind_the_last_position_are_noticed() {
        let mut data = [bf16::ZERO; 6];
        for mut head in HeadMut::all(&mut data, [1, 3, 1, 2]) {
            head.store(2, &[1.0; 4], |_| 1.0);
        }
    }
}
