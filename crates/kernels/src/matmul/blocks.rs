//! The loops around the tiles: which blocks are packed when, and which thread does what.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::LowRank;
use super::panels::{Stretch, pack_left, pack_right, pairs};
use super::tile::{self, COLUMNS, ROWS, Tile};
use super::view::{MatrixMut, MatrixView};
use crate::aligned::Aligned;
use crate::avx512_bf16::Avx512Bf16;

/// Rows of a block of the left operand. With the depth it fills a third of a second-level cache.
const BLOCK_ROWS: usize = 9 * ROWS;
/// Columns of a block of the right operand, which lies in the last-level cache.
const BLOCK_COLUMNS: usize = 32 * COLUMNS;
/// The most that is summed in one pass.
const BLOCK_DEPTH: usize = 1280;

/// Where a product goes: a matrix that is borrowed for as long as this lives, as a pointer, because its parts are rectangles.
pub(super) struct Target<'a> {
    kind: TargetKind,
    size: (usize, usize),
    /// Elements from a row to the next.
    row: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

#[derive(Clone, Copy)]
enum TargetKind {
    /// fp32, written or added to.
    Sums { data: *mut f32, adds: bool },
    /// bf16, rounded once.
    Rounded { data: *mut bf16 },
}

// SAFETY: the matrix is borrowed mutably, and every thread writes a part of its own.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    /// fp32, added to what is there, or written over it.
    pub(super) fn sums(mut out: MatrixMut<'a, f32>, adds: bool) -> Self {
        Self {
            size: out.size(),
            row: out.row_stride(),
            kind: TargetKind::Sums {
                data: out.as_mut_ptr(),
                adds,
            },
            borrowed: PhantomData,
        }
    }

    /// bf16, rounded once.
    pub(super) fn rounded(mut out: MatrixMut<'a, bf16>) -> Self {
        Self {
            size: out.size(),
            row: out.row_stride(),
            kind: TargetKind::Rounded {
                data: out.as_mut_ptr(),
            },
            borrowed: PhantomData,
        }
    }
}

/// `a [m, k] . b [k, n] (+ bias [n]) (+ a product of another depth)`.
pub(super) struct Problem<'a> {
    cpu: Avx512Bf16,
    m: usize,
    n: usize,
    k: usize,
    a: MatrixView<'a>,
    /// Transposed: its rows are the columns of the matrix.
    b: MatrixView<'a>,
    bias: Option<&'a [f32]>,
    /// Summed in the last pass, in the order of their columns.
    plus: &'a [LowRank<'a>],
    target: Target<'a>,
}

/// Panels, and sums that wait for their last pass: what one thread needs.
struct Workspace {
    a: Aligned<u32>,
    b: Aligned<u32>,
    /// Room only: what a pass wrote, the next one reads.
    sums: Aligned<f32>,
}

impl<'a> Problem<'a> {
    /// # Panics
    /// When sizes do not fit, or nothing is summed over.
    pub(super) fn new(
        cpu: Avx512Bf16,
        target: Target<'a>,
        a: MatrixView<'a>,
        b: MatrixView<'a>,
        bias: Option<&'a [f32]>,
    ) -> Self {
        let (m, k, n) = (a.rows(), a.columns(), b.columns());
        let fits = b.rows() == k && target.size == (m, n) && bias.is_none_or(|b| b.len() == n);
        assert!(
            fits && k > 0,
            "[{m}, {k}] . [{}, {n}] + {:?} into {:?}",
            b.rows(),
            bias.map(<[f32]>::len),
            target.size
        );
        Self {
            cpu,
            m,
            n,
            k,
            a,
            b: b.transposed(),
            bias,
            plus: &[],
            target,
        }
    }

    /// Adds `plus` to the product.
    ///
    /// # Panics
    /// When a size is not that of its columns of the result, nothing is summed over, or columns are not in order.
    pub(super) fn plus(mut self, plus: &'a [LowRank<'a>]) -> Self {
        let mut free = 0;
        for LowRank { a, b, columns } in plus {
            let (m, depth, n) = (a.rows(), a.columns(), b.columns());
            let fits = (m, n) == (self.m, columns.len()) && b.rows() == depth && depth > 0;
            assert!(
                fits && free <= columns.start && columns.end <= self.n,
                "[{m}, {depth}] . [{}, {n}] into columns {columns:?} of {:?}, from {free} on",
                b.rows(),
                self.target.size
            );
            free = columns.end;
        }
        self.plus = plus;
        self
    }

    /// Computes it on all threads.
    pub(super) fn solve(self) {
        let threads = rayon::current_num_threads();
        let parts = self.parts(threads);
        let solve = |(rows, columns): (Range<usize>, Range<usize>)| {
            // SAFETY: the parts are apart from each other and within the result.
            unsafe { self.solve_part(rows, columns) };
        };
        if threads == 1 {
            parts.into_iter().for_each(solve);
        } else {
            parts.into_par_iter().for_each(solve);
        }
    }

    /// Cuts the result into one rectangle per thread, as nearly square as can be: its sides are what has to be packed.
    fn parts(&self, threads: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let sides = |high: usize| self.m.div_ceil(high) + self.n.div_ceil(threads / high);
        let high = (1..=threads)
            .filter(|high| threads.is_multiple_of(*high))
            .min_by_key(|&high| sides(high))
            .unwrap_or(1);
        let columns = cut(self.n, threads / high, COLUMNS);
        cut(self.m, high, ROWS)
            .into_iter()
            .flat_map(|rows| {
                columns
                    .iter()
                    .map(move |columns| (rows.clone(), columns.clone()))
            })
            .collect()
    }

    /// # Safety
    /// The rows and columns are in the result, and nobody else works on this part.
    unsafe fn solve_part(&self, rows: Range<usize>, columns: Range<usize>) {
        let passes = self.k.div_ceil(BLOCK_DEPTH);
        let depth = self.k.div_ceil(passes).next_multiple_of(2);
        let keeps_sums = passes > 1 && matches!(self.target.kind, TargetKind::Rounded { .. });
        let block_columns = BLOCK_COLUMNS.min(columns.len().next_multiple_of(COLUMNS));
        let block_rows = BLOCK_ROWS.min(rows.len());
        let of_plus = self.plus.iter().map(|plus| plus.a.columns().div_ceil(2));
        let deepest = depth / 2 + of_plus.max().unwrap_or(0);
        let mut space = Workspace {
            a: Aligned::with_capacity(block_rows * deepest),
            b: Aligned::with_capacity(block_columns * deepest),
            sums: Aligned::with_capacity(if keeps_sums {
                rows.len() * block_columns
            } else {
                0
            }),
        };
        let mut next = columns.start;
        while next < columns.end {
            let end = columns.end.min(next + block_columns);
            let columns = next..self.next_edge(next).min(end);
            next = columns.end;
            for k in (0..self.k).step_by(depth) {
                let depth = k..self.k.min(k + depth);
                // SAFETY: passed on from the caller; where there are more passes than one into a rounded result, the workspace
                // has room for the sums of all rows and of the columns of a block.
                unsafe { self.add_pass(&mut space, &rows, &columns, &depth) };
            }
        }
    }

    /// Where the columns after `column` begin that something else is added to.
    fn next_edge(&self, column: usize) -> usize {
        let edges = self.plus.iter();
        let edges = edges.flat_map(|plus| [plus.columns.start, plus.columns.end]);
        edges.filter(|edge| *edge > column).min().unwrap_or(self.n)
    }

    /// Adds the products of `depth` of the reduced dimension, to columns that are all within one of `plus`, or in none.
    ///
    /// # Safety
    /// As [`Self::solve_part`]; where this is not the only pass into a rounded result, `space` has room for its sums.
    unsafe fn add_pass(
        &self,
        space: &mut Workspace,
        rows: &Range<usize>,
        columns: &Range<usize>,
        depth: &Range<usize>,
    ) {
        let cpu = self.cpu;
        let of_pass = |matrix| Stretch::new(matrix, depth.clone());
        let (mut left, mut right) = (vec![of_pass(self.a)], vec![of_pass(self.b)]);
        let is_here = |plus: &&LowRank<'_>| plus.columns.contains(&columns.start);
        if let Some(plus) = self.plus.iter().find(is_here)
            && depth.end == self.k
        {
            let whole = 0..plus.a.columns();
            left.push(Stretch::new(plus.a, whole.clone()));
            right.push(Stretch {
                matrix: plus.b.transposed(),
                depth: whole,
                first: plus.columns.start,
            });
        }
        let pairs = pairs(&left);
        pack_right(cpu, &mut space.b, &right, columns.clone());
        for first in rows.clone().step_by(BLOCK_ROWS) {
            let block = first..rows.end.min(first + BLOCK_ROWS);
            pack_left(cpu, &mut space.a, &left, block.clone());
            let panels_b = space.b.chunks_exact(COLUMNS * pairs);
            for (column, panel_b) in columns.clone().step_by(COLUMNS).zip(panels_b) {
                let panels_a = space.a.chunks(ROWS * pairs);
                for (row, panel_a) in block.clone().step_by(ROWS).zip(panels_a) {
                    let sums = space.sums.as_mut_ptr();
                    let tile = Tile {
                        rows: ROWS.min(block.end - row),
                        columns: COLUMNS.min(columns.end - column),
                        ..self.tile(sums, (row, rows), (column, columns), depth)
                    };
                    // SAFETY: the tile lies in this part, and its sums in the workspace.
                    unsafe { tile::run(cpu, panel_a, panel_b, &tile) };
                }
            }
        }
    }

    /// Where the tile that starts at (`row`, `column`) goes in this pass; `kept` is where sums wait for the next.
    fn tile(
        &self,
        kept: *mut f32,
        (row, rows): (usize, &Range<usize>),
        (column, columns): (usize, &Range<usize>),
        depth: &Range<usize>,
    ) -> Tile {
        let (is_first, is_last) = (depth.start == 0, depth.end == self.k);
        let bias = match self.bias {
            Some(bias) if is_first => bias[column..].as_ptr(),
            _ => std::ptr::null(),
        };
        let width = self.target.row;
        let place = row * width + column;
        let (sums, sums_row, adds, rounded) = match self.target.kind {
            TargetKind::Sums { data, adds } => (
                data.wrapping_add(place),
                width,
                adds || !is_first,
                std::ptr::null_mut(),
            ),
            TargetKind::Rounded { data } => {
                let sums_row = columns.len();
                let kept =
                    kept.wrapping_add((row - rows.start) * sums_row + column - columns.start);
                let rounded = match is_last {
                    true => data.wrapping_add(place),
                    false => std::ptr::null_mut(),
                };
                (kept, sums_row, !is_first, rounded)
            }
        };
        Tile {
            sums,
            sums_row,
            adds,
            rounded,
            rounded_row: width,
            bias,
            rows: 0,
            columns: 0,
        }
    }
}

/// `0..len` in at most `parts` ranges that begin at multiples of `unit`.
fn cut(len: usize, parts: usize, unit: usize) -> Vec<Range<usize>> {
    let part = len.div_ceil(parts).next_multiple_of(unit);
    (0..len)
        .step_by(part.max(1))
        .map(|start| start..len.min(start + part))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_everything_once() {
        for len in [0, 1, 13, 14, 15, 300] {
            for parts in [1, 2, 3, 7] {
                let ranges = cut(len, parts, 14);
                assert!(ranges.len() <= parts);
                let elements: Vec<usize> = ranges.into_iter().flatten().collect();
                assert_eq!(elements, (0..len).collect::<Vec<_>>());
            }
        }
    }
}
