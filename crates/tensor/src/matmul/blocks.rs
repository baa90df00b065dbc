//! The loops around the kernel: which blocks are packed when, and which thread does what.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::kernel::{self, COLUMNS, ROWS, Tile};
use super::pack::Operand;
use super::panels::pack_right;

/// Rows of a block of the left operand. With the depth it fills a third of a second-level cache.
const BLOCK_ROWS: usize = 9 * ROWS;
/// Columns of a block of the right operand, which lies in the last-level cache.
const BLOCK_COLUMNS: usize = 32 * COLUMNS;
/// The most that is summed in one pass.
const BLOCK_DEPTH: usize = 1280;

/// Where a product goes.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// fp32, written or added to.
    Float {
        data: *mut f32,
        row: usize,
        adds: bool,
    },
    /// bf16, rounded once.
    Bf16 { data: *mut bf16, row: usize },
}

/// `a [m, k] . b [k, n]`; the rows of the operand `b` are the columns of the matrix.
pub(super) struct Problem {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Operand,
    pub(super) b: Operand,
    /// fp32 `[n]`.
    pub(super) bias: Option<*const f32>,
    pub(super) target: Target,
}

// SAFETY: the pointers are to tensors that are only read, and to a result of which every thread has a part of its own.
unsafe impl Sync for Problem {}

/// Panels, and sums that wait for their last pass: what one thread needs.
struct Workspace {
    a: Vec<u32>,
    b: Vec<u32>,
    sums: Vec<f32>,
}

impl Problem {
    /// Computes it on all threads.
    ///
    /// # Safety
    /// The pointers are good for the shapes, the result is apart from the operands, and the processor has the features.
    pub(super) unsafe fn solve(&self) {
        let threads = rayon::current_num_threads();
        let parts = self.parts(threads);
        // SAFETY: passed on from the caller; the parts are apart from each other.
        let solve = |(rows, columns): (Range<usize>, Range<usize>)| unsafe {
            self.solve_part(rows, columns);
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
    /// As [`Self::solve`]; nobody else works on this part.
    unsafe fn solve_part(&self, rows: Range<usize>, columns: Range<usize>) {
        let passes = self.k.div_ceil(BLOCK_DEPTH);
        let depth = self.k.div_ceil(passes).next_multiple_of(2);
        let keeps_sums = passes > 1 && matches!(self.target, Target::Bf16 { .. });
        let block_columns = BLOCK_COLUMNS.min(columns.len().next_multiple_of(COLUMNS));
        let block_rows = BLOCK_ROWS.min(rows.len());
        let mut space = Workspace {
            a: Vec::with_capacity(block_rows * depth / 2),
            b: Vec::with_capacity(block_columns * depth / 2),
            sums: Vec::with_capacity(if keeps_sums {
                rows.len() * block_columns
            } else {
                0
            }),
        };
        for column in columns.clone().step_by(block_columns) {
            let columns = column..columns.end.min(column + block_columns);
            for k in (0..self.k).step_by(depth) {
                let depth = depth.min(self.k - k);
                // SAFETY: passed on from the caller; the workspace has room for blocks of these sizes.
                unsafe { self.add_pass(&mut space, &rows, &columns, (k, depth)) };
            }
        }
    }

    /// Adds the products of the reduced dimension's elements `k .. k + depth`.
    ///
    /// # Safety
    /// As [`Self::solve_part`]; `space` has room.
    unsafe fn add_pass(
        &self,
        space: &mut Workspace,
        rows: &Range<usize>,
        columns: &Range<usize>,
        (k, depth): (usize, usize),
    ) {
        let pairs = depth.div_ceil(2);
        let (panels_a, panels_b) = (space.a.as_mut_ptr(), space.b.as_mut_ptr());
        // SAFETY: the columns exist; the workspace holds whole panels.
        unsafe { pack_right(panels_b, &self.b, columns.clone(), (k, depth)) };
        for first in rows.clone().step_by(BLOCK_ROWS) {
            let block = first..rows.end.min(first + BLOCK_ROWS);
            for row in block.clone().step_by(ROWS) {
                let count = ROWS.min(block.end - row);
                let panel = panels_a.wrapping_add((row - first) * pairs);
                // SAFETY: the rows exist; a panel has as many places a pair as it has rows.
                unsafe { self.a.pack(panel, count, (row, count), (k, depth)) };
            }
            for column in columns.clone().step_by(COLUMNS) {
                let panel_b = panels_b.wrapping_add((column - columns.start) * pairs);
                for row in block.clone().step_by(ROWS) {
                    let panel_a = panels_a.wrapping_add((row - first) * pairs);
                    let tile = Tile {
                        rows: ROWS.min(block.end - row),
                        columns: COLUMNS.min(columns.end - column),
                        ..self.tile(space, (row, rows), (column, columns), (k, depth))
                    };
                    // SAFETY: the panels were packed above with `pairs` steps; the tile lies in this part.
                    unsafe { kernel::run(pairs, panel_a, panel_b, &tile) };
                }
            }
        }
    }

    /// Where the tile that starts at (`row`, `column`) goes in this pass.
    fn tile(
        &self,
        space: &mut Workspace,
        (row, rows): (usize, &Range<usize>),
        (column, columns): (usize, &Range<usize>),
        (k, depth): (usize, usize),
    ) -> Tile {
        let (is_first, is_last) = (k == 0, k + depth == self.k);
        let bias = match self.bias {
            Some(bias) if is_first => bias.wrapping_add(column),
            _ => std::ptr::null(),
        };
        let (sums, sums_row, adds, rounded, rounded_row) = match self.target {
            Target::Float {
                data,
                row: width,
                adds,
            } => {
                let sums = data.wrapping_add(row * width + column);
                (sums, width, adds || !is_first, std::ptr::null_mut(), 0)
            }
            Target::Bf16 { data, row: width } => {
                let sums_row = columns.len();
                let place = (row - rows.start) * sums_row + column - columns.start;
                let sums = space.sums.as_mut_ptr().wrapping_add(place);
                let rounded = match is_last {
                    true => data.wrapping_add(row * width + column),
                    false => std::ptr::null_mut(),
                };
                (sums, sums_row, !is_first, rounded, width)
            }
        };
        Tile {
            sums,
            sums_row,
            adds,
            rounded,
            rounded_row,
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
        .step_by(part)
        .map(|start| start..len.min(start + part))
        .collect()
}
