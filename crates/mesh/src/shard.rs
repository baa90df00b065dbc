//! Which elements of a global tensor a rank holds.
//!
//! Tensor parallelism cuts a tensor along one dimension; data parallelism then cuts the flattened result at
//! an arbitrary element (the *ragged* shard of veScale-FSDP, arXiv 2602.22437). A [`ShardSlice`] is both cuts
//! at once, and [`ShardSlice::copies_from`] is all that resharding a checkpoint needs.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A part of a global tensor: a rectangle of it, and of that rectangle, flattened row-major, the elements `flat`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShardSlice {
    /// Shape of the whole tensor.
    pub global_shape: Vec<usize>,
    /// Where the rectangle starts, per dimension.
    pub offsets: Vec<usize>,
    /// The rectangle's extent, per dimension.
    pub shape: Vec<usize>,
    /// Elements of the flattened rectangle that are held.
    pub flat: Range<usize>,
}

/// `len` elements to copy from position `source` of one buffer to position `target` of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First element in the source buffer.
    pub source: usize,
    /// First element in the target buffer.
    pub target: usize,
    /// How many elements.
    pub len: usize,
}

impl ShardSlice {
    /// The whole tensor.
    pub fn whole(global_shape: &[usize]) -> Self {
        Self {
            global_shape: global_shape.to_vec(),
            offsets: vec![0; global_shape.len()],
            shape: global_shape.to_vec(),
            flat: 0..global_shape.iter().product(),
        }
    }

    /// The rectangle that keeps only `range` of dimension `dim`.
    ///
    /// # Panics
    /// When `dim` or `range` is outside the tensor.
    pub fn narrow(global_shape: &[usize], dim: usize, range: Range<usize>) -> Self {
        assert!(
            dim < global_shape.len() && range.start <= range.end && range.end <= global_shape[dim],
            "range {range:?} of dimension {dim} is outside shape {global_shape:?}"
        );
        let mut slice = Self::whole(global_shape);
        slice.offsets[dim] = range.start;
        slice.shape[dim] = range.len();
        slice.flat = 0..slice.shape.iter().product();
        slice
    }

    /// The same rectangle, of which only the elements `flat` are held.
    ///
    /// # Panics
    /// When `flat` is outside the rectangle.
    pub fn with_flat(mut self, flat: Range<usize>) -> Self {
        assert!(flat.start <= flat.end && flat.end <= self.rect_numel());
        self.flat = flat;
        self
    }

    /// Elements of the rectangle.
    pub fn rect_numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements held.
    pub fn numel(&self) -> usize {
        self.flat.len()
    }

    /// True when nothing is held.
    pub fn is_empty(&self) -> bool {
        self.flat.is_empty()
    }

    /// The held elements as maximal contiguous runs of the *global* tensor: `source` is the position in the
    /// flattened global tensor, `target` the position in this slice's own buffer (0 is `flat.start`).
    pub fn runs(&self) -> Vec<Run> {
        let Range { start, end } = self.flat;
        if start == end {
            return Vec::new();
        }
        // Trailing dimensions that are held whole make one contiguous row of the rectangle.
        let mut row_dims = self.shape.len();
        let mut row = 1;
        while row_dims > 0 {
            row_dims -= 1;
            row *= self.shape[row_dims];
            if self.shape[row_dims] != self.global_shape[row_dims] {
                break;
            }
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut position = start;
        while position < end {
            let len = (row - position % row).min(end - position);
            let source = self.global_index(position);
            match runs.last_mut() {
                Some(last) if last.source + last.len == source => last.len += len,
                _ => runs.push(Run {
                    source,
                    target: position - start,
                    len,
                }),
            }
            position += len;
        }
        runs
    }

    /// What to copy from a buffer holding `other` into a buffer holding `self`, both slices of one tensor.
    ///
    /// # Panics
    /// When the two are slices of tensors of different shape.
    pub fn copies_from(&self, other: &ShardSlice) -> Vec<Run> {
        assert_eq!(
            self.global_shape, other.global_shape,
            "slices of different tensors"
        );
        let (mine, theirs) = (self.runs(), other.runs());
        let mut copies = Vec::new();
        let (mut i, mut j) = (0, 0);
        // Both lists ascend in the global tensor, so one merge pass finds every overlap.
        while i < mine.len() && j < theirs.len() {
            let (a, b) = (mine[i], theirs[j]);
            let start = a.source.max(b.source);
            let end = (a.source + a.len).min(b.source + b.len);
            if start < end {
                copies.push(Run {
                    source: b.target + (start - b.source),
                    target: a.target + (start - a.source),
                    len: end - start,
                });
            }
            if a.source + a.len <= b.source + b.len {
                i += 1;
            } else {
                j += 1;
            }
        }
        copies
    }

    /// Position in the flattened global tensor of element `position` of the flattened rectangle.
    fn global_index(&self, mut position: usize) -> usize {
        let mut index = 0;
        let mut stride = 1;
        for dim in (0..self.shape.len()).rev() {
            let coordinate = self.offsets[dim] + position % self.shape[dim];
            position /= self.shape[dim];
            index += coordinate * stride;
            stride *= self.global_shape[dim];
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition;
    use proptest::prelude::*;

    /// All shards of one tensor: cut along `dim` into `tp`, each flattened and cut into `dp`.
    fn shards(shape: &[usize], dim: usize, tp: usize, dp: usize) -> Vec<ShardSlice> {
        (0..tp)
            .flat_map(|t| {
                let rect = ShardSlice::narrow(shape, dim, partition(shape[dim], tp, t));
                (0..dp).map(move |d| {
                    let flat = partition(rect.rect_numel(), dp, d);
                    rect.clone().with_flat(flat)
                })
            })
            .collect()
    }

    fn fill(slice: &ShardSlice) -> Vec<usize> {
        let mut buffer = vec![usize::MAX; slice.numel()];
        for run in slice.runs() {
            for k in 0..run.len {
                buffer[run.target + k] = run.source + k;
            }
        }
        buffer
    }

    proptest! {
        #[test]
        fn every_element_is_owned_exactly_once(
            rows in 1usize..12, columns in 1usize..12, dim in 0usize..2, tp in 1usize..5, dp in 1usize..5,
        ) {
            let shape = [rows, columns];
            let mut owners = vec![0; rows * columns];
            for shard in shards(&shape, dim, tp, dp) {
                for element in fill(&shard) {
                    owners[element] += 1;
                }
            }
            prop_assert!(owners.iter().all(|&count| count == 1), "{:?}", owners);
        }

        #[test]
        fn any_mesh_can_be_rebuilt_from_any_other(
            rows in 1usize..12, columns in 1usize..12, dims in (0usize..2, 0usize..2),
            from in (1usize..5, 1usize..5), to in (1usize..5, 1usize..5),
        ) {
            let shape = [rows, columns];
            let saved = shards(&shape, dims.0, from.0, from.1);
            for wanted in shards(&shape, dims.1, to.0, to.1) {
                let mut buffer = vec![usize::MAX; wanted.numel()];
                for piece in &saved {
                    let data = fill(piece);
                    for run in wanted.copies_from(piece) {
                        buffer[run.target..run.target + run.len]
                            .copy_from_slice(&data[run.source..run.source + run.len]);
                    }
                }
                prop_assert_eq!(buffer, fill(&wanted));
            }
        }
    }

    #[test]
    fn a_row_shard_is_one_run_and_a_column_shard_one_run_per_row() {
        assert_eq!(ShardSlice::narrow(&[4, 6], 0, 1..3).runs().len(), 1);
        assert_eq!(ShardSlice::narrow(&[4, 6], 1, 1..3).runs().len(), 4);
        assert_eq!(ShardSlice::whole(&[]).runs().len(), 1);
        assert!(ShardSlice::narrow(&[4, 6], 0, 2..2).runs().is_empty());
    }
}
