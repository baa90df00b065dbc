//! The innermost loop: one tile of the result stays in registers while a panel of each operand passes by.

use std::arch::x86_64::*;

use half::bf16;

use super::pack::low_bits;
use crate::avx512_bf16::Avx512Bf16;

/// Rows of a tile: with two vectors each, 28 of the 32 registers hold the result.
pub(super) const ROWS: usize = 14;
// The macros below list the rows.
const _: () = assert!(ROWS == 14);
/// Columns of a tile: two vectors of fp32.
pub(super) const COLUMNS: usize = 2 * LANES;
const LANES: usize = 16;

/// What happens to a tile when its panels are through.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// fp32 sums: where they are kept between passes, and the result where that is fp32.
    pub(super) sums: *mut f32,
    /// Elements from a row of the sums to the next.
    pub(super) sums_row: usize,
    /// Whether the sums already hold something to add to.
    pub(super) adds: bool,
    /// Where the result goes instead, rounded; null until the last pass.
    pub(super) rounded: *mut bf16,
    /// Elements from a row of the rounded result to the next.
    pub(super) rounded_row: usize,
    /// fp32, added to every row in this pass; null where there is none.
    pub(super) bias: *const f32,
    /// Rows that exist, at most [`ROWS`].
    pub(super) rows: usize,
    /// Columns that exist, at most [`COLUMNS`].
    pub(super) columns: usize,
}

/// Adds up all pairs of a panel of `tile.rows` rows, and of one of [`COLUMNS`] columns.
///
/// # Safety
/// The tile's rows and columns may be read and written, and nobody else does meanwhile.
pub(super) unsafe fn run(_proof: Avx512Bf16, a: &[u32], b: &[u32], tile: &Tile) {
    let pairs = b.len() / COLUMNS;
    assert!(a.len() == pairs * tile.rows && tile.columns <= COLUMNS);
    // SAFETY: the panels have as many steps; the processor was asked; the rest is passed on from the caller.
    unsafe { by_rows(pairs, a.as_ptr(), b.as_ptr(), tile) };
}

/// The body once for each row that a tile of `$rows` has, with the row's number as a constant. In a loop, which the compiler
/// does not unroll as far, the sums would have to be in memory, and be set to zero there first.
macro_rules! for_each_row {
    ($rows:ident, $i:ident => $body:expr) => {
        for_each_row!(@ $rows, $i => $body; 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $rows:ident, $i:ident => $body:expr; $($row:literal)*) => {
        $(if $row < $rows {
            let $i = $row;
            $body;
        })*
    };
}

/// # Safety
/// The panels have `pairs` steps; the tile's rows and columns may be read and written; the processor has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn by_rows(pairs: usize, a: *const u32, b: *const u32, tile: &Tile) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match tile.rows {
                // SAFETY: passed on from the caller.
                $($rows => unsafe { run_rows::<$rows>(pairs, a, b, tile) },)*
                _ => unreachable!("a tile has 1 to {ROWS} rows"),
            }
        };
    }
    by_rows!(14 1 2 3 4 5 6 7 8 9 10 11 12 13)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn run_rows<const R: usize>(pairs: usize, a: *const u32, b: *const u32, tile: &Tile) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for i in 0..R {
        // By the time that the sums are through, the place for them is in the cache, and so is what they are added to.
        if !tile.rounded.is_null() {
            ask_for(tile.rounded.wrapping_add(i * tile.rounded_row));
        }
        if tile.rounded.is_null() || tile.adds {
            ask_for(tile.sums.wrapping_add(i * tile.sums_row));
        }
    }
    let (mut a, mut b) = (a, b);
    for _ in 0..pairs {
        // SAFETY: the panels have `pairs` steps of these sizes.
        unsafe {
            let left = as_bf16(_mm512_loadu_si512(b.cast()));
            let right = as_bf16(_mm512_loadu_si512(b.add(LANES).cast()));
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = as_bf16(_mm512_set1_epi32((*a.add(i)).cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], left, x);
                sums[1] = _mm512_dpbf16_ps(sums[1], right, x);
            }
            a = a.add(R);
            b = b.add(COLUMNS);
        }
    }

    let mask = low_bits(tile.columns);
    let masks = [mask as __mmask16, (mask >> LANES) as __mmask16];
    if !tile.bias.is_null() {
        // SAFETY: the masks admit only columns that exist.
        let bias = unsafe { load(tile.bias, masks) };
        for_each_row!(R, i => sums[i] = add(sums[i], bias));
    }
    if tile.adds {
        for_each_row!(R, i => {
            // SAFETY: as above.
            let before = unsafe { load(tile.sums.wrapping_add(i * tile.sums_row), masks) };
            sums[i] = add(sums[i], before);
        });
    }
    if tile.rounded.is_null() {
        for_each_row!(R, i => {
            let place = tile.sums.wrapping_add(i * tile.sums_row);
            // SAFETY: as above.
            unsafe {
                _mm512_mask_storeu_ps(place, masks[0], sums[i][0]);
                _mm512_mask_storeu_ps(place.wrapping_add(LANES), masks[1], sums[i][1]);
            }
        });
    } else {
        for_each_row!(R, i => {
            let place = tile.rounded.wrapping_add(i * tile.rounded_row);
            let rounded = from_bf16(_mm512_cvtne2ps_pbh(sums[i][1], sums[i][0]));
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_epi16(place.cast(), mask, rounded) };
        });
    }
}

/// Asks for the two cache lines from here on, to be written.
#[inline]
#[target_feature(enable = "avx512f")]
fn ask_for<T>(row: *const T) {
    _mm_prefetch::<_MM_HINT_ET0>(row.cast());
    _mm_prefetch::<_MM_HINT_ET0>(row.cast::<i8>().wrapping_add(64));
}

/// A row of a tile, zero in columns that the masks leave out.
///
/// # Safety
/// What the masks admit may be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(row: *const f32, masks: [__mmask16; 2]) -> [__m512; 2] {
    // SAFETY: passed on from the caller.
    unsafe {
        [
            _mm512_maskz_loadu_ps(masks[0], row),
            _mm512_maskz_loadu_ps(masks[1], row.wrapping_add(LANES)),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: [__m512; 2], b: [__m512; 2]) -> [__m512; 2] {
    [_mm512_add_ps(a[0], b[0]), _mm512_add_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, and any bits are 32 bf16.
    unsafe { std::mem::transmute(bits) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn from_bf16(values: __m512bh) -> __m512i {
    // SAFETY: both are 512 bits.
    unsafe { std::mem::transmute(values) }
}
