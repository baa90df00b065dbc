//! Packed operands: for the blocks of a large product, and for kernels that do other work between the products of blocks that
//! stay in the caches. They pack an operand once and multiply with it as often as they need.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::tile::{self, COLUMNS, Tile};
use super::view::MatrixView;
use crate::aligned::Aligned;
use crate::avx512_bf16::Avx512Bf16;

/// The most rows that a [`Left`] has.
pub(crate) const ROWS: usize = tile::ROWS;

/// A packed right operand `[depth, columns]`: a panel for every [`COLUMNS`] columns.
#[derive(Default)]
pub(crate) struct Right {
    panels: Aligned<u32>,
    columns: usize,
    pairs: usize,
}

impl Right {
    /// Packs `b`, whose rows are the columns of the operand, over what was packed before.
    pub(crate) fn pack(&mut self, cpu: Avx512Bf16, b: MatrixView<'_>) {
        (self.columns, self.pairs) = (b.rows(), b.columns().div_ceil(2));
        let whole = Stretch::new(b, 0..b.columns());
        pack_right(cpu, &mut self.panels, &[whole], 0..b.rows());
    }
}

/// A part of an operand's depth: these columns of a matrix whose rows are rows of the left operand, or columns of the right one.
#[derive(Clone)]
pub(super) struct Stretch<'a> {
    pub(super) matrix: MatrixView<'a>,
    pub(super) depth: Range<usize>,
    /// Which row or column of the operand the matrix begins with.
    pub(super) first: usize,
}

impl<'a> Stretch<'a> {
    pub(super) fn new(matrix: MatrixView<'a>, depth: Range<usize>) -> Self {
        Self {
            matrix,
            depth,
            first: 0,
        }
    }

    /// Steps of the innermost loop; the last one is half empty where the depth is odd.
    fn pairs(&self) -> usize {
        self.depth.len().div_ceil(2)
    }

    /// [`MatrixView::pack`] of these rows or columns of the operand.
    fn pack(
        &self,
        cpu: Avx512Bf16,
        panel: &mut [MaybeUninit<u32>],
        width: usize,
        rows: Range<usize>,
    ) {
        let rows = rows.start - self.first..rows.end - self.first;
        let depth = self.depth.clone();
        self.matrix.pack(cpu, panel, width, rows, depth);
    }
}

/// Steps of the innermost loop through all `stretches`.
pub(super) fn pairs(stretches: &[Stretch<'_>]) -> usize {
    stretches.iter().map(Stretch::pairs).sum()
}

/// Packs `columns` of a right operand into panels that follow each other; each is as deep as all `stretches`, one after the other.
pub(super) fn pack_right(
    cpu: Avx512Bf16,
    panels: &mut Aligned<u32>,
    stretches: &[Stretch<'_>],
    columns: Range<usize>,
) {
    let panel = COLUMNS * pairs(stretches);
    let len = columns.len().div_ceil(COLUMNS) * panel;
    let space = panels.room(len);
    let starts = columns.clone().step_by(COLUMNS);
    for (column, panel) in starts.zip(space.chunks_exact_mut(panel)) {
        let end = columns.end.min(column + COLUMNS);
        if end - column < COLUMNS {
            // The innermost loop reads, and then leaves out, columns that are not there.
            panel.fill(MaybeUninit::new(0));
        }
        let mut rest = panel;
        for stretch in stretches {
            let (place, after) = rest.split_at_mut(COLUMNS * stretch.pairs());
            let step = stretch.matrix.group(COLUMNS);
            for start in (column..end).step_by(step) {
                let group = start..end.min(start + step);
                stretch.pack(cpu, &mut place[start - column..], COLUMNS, group);
            }
            rest = after;
        }
    }
    // SAFETY: every panel was written: as wide as it is by its groups, or with zeros before.
    unsafe { panels.set_len(len) };
}

/// Packs `rows` of a left operand into panels of [`ROWS`] rows (the last one has what is left) that follow each other; each is as
/// deep as all `stretches`, one after the other.
pub(super) fn pack_left(
    cpu: Avx512Bf16,
    panels: &mut Aligned<u32>,
    stretches: &[Stretch<'_>],
    rows: Range<usize>,
) {
    let pairs = pairs(stretches);
    let len = rows.len() * pairs;
    let space = panels.room(len);
    let starts = rows.clone().step_by(ROWS);
    for (row, panel) in starts.zip(space.chunks_mut(ROWS * pairs)) {
        let rows = row..rows.end.min(row + ROWS);
        let mut rest = panel;
        for stretch in stretches {
            let (place, after) = rest.split_at_mut(rows.len() * stretch.pairs());
            stretch.pack(cpu, place, rows.len(), rows.clone());
            rest = after;
        }
    }
    // SAFETY: every panel was written, as wide as it has rows.
    unsafe { panels.set_len(len) };
}

/// A packed left operand of at most [`ROWS`] rows.
#[derive(Default)]
pub(crate) struct Left {
    panel: Aligned<u32>,
    rows: usize,
    pairs: usize,
}

/// fp32 sums of a product; `row` elements lie from a row to the next.
pub(crate) struct Sums<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) row: usize,
    /// Whether they hold something to add to.
    pub(crate) adds: bool,
}

impl Left {
    /// Packs `rows` of `a`, as deep as `depth` says, over what was packed before.
    pub(crate) fn pack(
        &mut self,
        cpu: Avx512Bf16,
        a: MatrixView<'_>,
        rows: Range<usize>,
        depth: Range<usize>,
    ) {
        assert!(rows.len() <= ROWS);
        (self.rows, self.pairs) = (rows.len(), depth.len().div_ceil(2));
        pack_left(cpu, &mut self.panel, &[Stretch::new(a, depth)], rows);
    }

    /// Multiplies with `columns` of `right`, whose depth from `k` on is this one's. `columns` begin with a panel, `k` with a
    /// pair; the sums begin with the first of the columns.
    pub(crate) fn multiply(
        &self,
        cpu: Avx512Bf16,
        right: &Right,
        k: usize,
        columns: Range<usize>,
        sums: Sums<'_>,
    ) {
        assert!(k.is_multiple_of(2) && k / 2 + self.pairs <= right.pairs);
        assert!(columns.start.is_multiple_of(COLUMNS) && columns.end <= right.columns);
        assert!(columns.len() <= sums.row && self.rows * sums.row <= sums.data.len());
        let data = sums.data.as_mut_ptr();
        for column in columns.clone().step_by(COLUMNS) {
            let place = column * right.pairs + k / 2 * COLUMNS;
            let panel = &right.panels[place..][..self.pairs * COLUMNS];
            let tile = Tile {
                sums: data.wrapping_add(column - columns.start),
                sums_row: sums.row,
                adds: sums.adds,
                rounded: std::ptr::null_mut(),
                rounded_row: 0,
                bias: std::ptr::null(),
                rows: self.rows,
                columns: COLUMNS.min(columns.end - column),
            };
            // SAFETY: the sums have whole rows, at least as long as there are columns.
            unsafe { tile::run(cpu, &self.panel, panel, &tile) };
        }
    }
}

/// Where columns that are multiplied may begin.
pub(crate) fn panel_start(column: usize) -> usize {
    column / COLUMNS * COLUMNS
}
