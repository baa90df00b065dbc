//! Products of blocks that stay in the caches, for kernels that do other work in between: they pack an operand once and
//! multiply with it as often as they need.

use std::ops::Range;

use super::kernel::{self, COLUMNS, Tile};
use super::pack::{GROUP, Operand};

/// The most rows that a [`Left`] has.
pub(crate) const ROWS: usize = kernel::ROWS;

/// A packed right operand `[depth, columns]`: a panel for every [`COLUMNS`] columns.
#[derive(Default)]
pub(crate) struct Right {
    panels: Vec<u32>,
    pairs: usize,
}

impl Right {
    /// Packs `b`, whose rows are the columns of the matrix, over what was packed before.
    ///
    /// # Safety
    /// `b` has this many rows and this depth; the processor has the features.
    pub(crate) unsafe fn pack(&mut self, b: Operand, columns: usize, depth: usize) {
        self.pairs = depth.div_ceil(2);
        self.panels.clear();
        self.panels
            .reserve(columns.next_multiple_of(COLUMNS) * self.pairs);
        // SAFETY: passed on from the caller; there is room for whole panels.
        unsafe { pack_right(self.panels.as_mut_ptr(), &b, 0..columns, (0, depth)) };
    }
}

/// Packs `columns` of a right operand, as deep as `(k, depth)` says, into panels that follow each other.
///
/// # Safety
/// The columns and the depth are there, `panels` has room for whole panels, and the processor has the features.
pub(super) unsafe fn pack_right(
    panels: *mut u32,
    b: &Operand,
    columns: Range<usize>,
    (k, depth): (usize, usize),
) {
    let pairs = depth.div_ceil(2);
    for column in columns.clone().step_by(COLUMNS) {
        let panel = panels.wrapping_add((column - columns.start) * pairs);
        if columns.end - column < COLUMNS {
            // The kernel reads, and then leaves out, columns that are not there.
            // SAFETY: there is room for whole panels.
            unsafe { panel.write_bytes(0, COLUMNS * pairs) };
        }
        for start in (column..columns.end.min(column + COLUMNS)).step_by(GROUP) {
            let count = GROUP.min(columns.end - start);
            let panel = panel.wrapping_add(start - column);
            // SAFETY: the columns exist; the panels have `COLUMNS` places a pair.
            unsafe { b.pack(panel, COLUMNS, (start, count), (k, depth)) };
        }
    }
}

/// A packed left operand of at most [`ROWS`] rows.
#[derive(Default)]
pub(crate) struct Left {
    panel: Vec<u32>,
    rows: usize,
    pairs: usize,
}

/// fp32 sums of a product; `row` elements lie from a row to the next.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) data: *mut f32,
    pub(crate) row: usize,
    /// Whether they hold something to add to.
    pub(crate) adds: bool,
}

impl Left {
    /// Packs `rows` rows of `a` from `first` on, in the depth `k .. k + depth`, over what was packed before.
    ///
    /// # Safety
    /// `a` has them; the processor has the features.
    pub(crate) unsafe fn pack(
        &mut self,
        a: Operand,
        (first, rows): (usize, usize),
        (k, depth): (usize, usize),
    ) {
        (self.rows, self.pairs) = (rows, depth.div_ceil(2));
        self.panel.clear();
        self.panel.reserve(rows * self.pairs);
        // SAFETY: passed on from the caller; there is room.
        unsafe { a.pack(self.panel.as_mut_ptr(), rows, (first, rows), (k, depth)) };
    }

    /// Multiplies with `columns` of `right`, whose depth from `k` on is this one's. `columns` begin with a panel, `k` with a
    /// pair; the sums begin with the first of the columns.
    ///
    /// # Safety
    /// `right` has the columns and the depth; the sums may be read and written, and nobody else does; the processor has the
    /// features.
    pub(crate) unsafe fn multiply(
        &self,
        right: &Right,
        k: usize,
        columns: Range<usize>,
        sums: Sums,
    ) {
        for column in columns.clone().step_by(COLUMNS) {
            let place = column * right.pairs + k / 2 * COLUMNS;
            let tile = Tile {
                sums: sums.data.wrapping_add(column - columns.start),
                sums_row: sums.row,
                adds: sums.adds,
                rounded: std::ptr::null_mut(),
                rounded_row: 0,
                bias: std::ptr::null(),
                rows: self.rows,
                columns: COLUMNS.min(columns.end - column),
            };
            let panel = right.panels.as_ptr().wrapping_add(place);
            // SAFETY: passed on from the caller.
            unsafe { kernel::run(self.pairs, self.panel.as_ptr(), panel, &tile) };
        }
    }
}

/// Where columns that are multiplied may begin.
pub(crate) fn panel_start(column: usize) -> usize {
    column / COLUMNS * COLUMNS
}
