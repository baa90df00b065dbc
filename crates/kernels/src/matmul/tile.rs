//! The innermost loop: one tile of the result stays in registers while a panel of each operand passes by.

use std::arch::x86_64::*;

use half::bf16;

use super::pack::low_bits;
use crate::avx512_bf16::Avx512Bf16;

/// Rows of a tile: with two vectors each, 28 of the 32 registers hold the result.
pub(super) const ROWS: usize = 14;
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
        // By the time that the sums are through, the place for them is in the cache.
        let place: *const i8 = match tile.rounded.is_null() {
            true => tile.sums.wrapping_add(i * tile.sums_row).cast(),
            false => tile.rounded.wrapping_add(i * tile.rounded_row).cast(),
        };
        _mm_prefetch::<_MM_HINT_ET0>(place);
        _mm_prefetch::<_MM_HINT_ET0>(place.wrapping_add(64));
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
        for (half, mask) in masks.into_iter().enumerate() {
            // SAFETY: the mask admits only columns that exist.
            let bias = unsafe { _mm512_maskz_loadu_ps(mask, tile.bias.wrapping_add(half * LANES)) };
            for sums in &mut sums {
                sums[half] = _mm512_add_ps(sums[half], bias);
            }
        }
    }
    for (i, sums) in sums.iter_mut().enumerate() {
        let row = tile.sums.wrapping_add(i * tile.sums_row);
        for (half, mask) in masks.into_iter().enumerate() {
            let place = row.wrapping_add(half * LANES);
            // SAFETY: the mask admits only columns that exist.
            unsafe {
                if tile.adds {
                    let before = _mm512_maskz_loadu_ps(mask, place);
                    sums[half] = _mm512_add_ps(sums[half], before);
                }
                if tile.rounded.is_null() {
                    _mm512_mask_storeu_ps(place, mask, sums[half]);
                }
            }
        }
        if !tile.rounded.is_null() {
            let place = tile.rounded.wrapping_add(i * tile.rounded_row);
            let rounded = from_bf16(_mm512_cvtne2ps_pbh(sums[1], sums[0]));
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_epi16(place.cast(), mask, rounded) };
        }
    }
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
