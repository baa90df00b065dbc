//! Copying a block of an operand into panels: pairs of neighbours in the reduced dimension side by side, as the
//! instruction wants them, and all that one step of the innermost loop reads in one run.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::view::MatrixView;
use crate::avx512_bf16::Avx512Bf16;

/// The widest group of rows that is packed at once where they lie one after another.
pub(super) const GROUP: usize = 16;
/// The same where their columns do: a cache line of each.
pub(super) const WIDE_GROUP: usize = 2 * GROUP;

impl MatrixView<'_> {
    /// How many rows [`Self::pack`] takes at once, of a panel `width` wide.
    pub(super) fn group(&self, width: usize) -> usize {
        match self.has_plain_rows() || width < WIDE_GROUP {
            true => GROUP,
            false => WIDE_GROUP,
        }
    }

    /// Packs `rows`, at most [`Self::group`], of the columns `depth`, over which products are summed: pair `p` of the row `i` of
    /// these goes to `panel[p * width + i]`. The second half of an odd last pair is zero.
    pub(super) fn pack(
        &self,
        _proof: Avx512Bf16,
        panel: &mut [MaybeUninit<u32>],
        width: usize,
        rows: Range<usize>,
        depth: Range<usize>,
    ) {
        let (count, pairs) = (rows.len(), depth.len().div_ceil(2));
        assert!(rows.end <= self.rows() && depth.end <= self.columns());
        assert!(count <= self.group(width) && count <= width);
        assert!(pairs * width <= panel.len() + width - count);
        // SAFETY: the elements exist, the last pair of the last row has a place, and the processor was asked.
        unsafe {
            let panel = panel.as_mut_ptr().cast();
            let (rows, depth) = ((rows.start, count), (depth.start, depth.len()));
            if count > GROUP {
                self.pack_wide(panel, width, rows, depth);
            } else {
                self.pack_unchecked(panel, width, rows, depth);
            }
        }
    }

    /// # Safety
    /// The rows `first .. first + count` and columns `k .. k + depth` are there, `panel` has room, and the processor has the
    /// features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pack_unchecked(
        &self,
        panel: *mut u32,
        width: usize,
        (first, count): (usize, usize),
        (k, depth): (usize, usize),
    ) {
        let rows = low_bits(count) as __mmask16;
        if self.has_plain_rows() {
            for done in (0..depth).step_by(2 * GROUP) {
                let left = (depth - done).min(2 * GROUP);
                let columns = low_bits(left);
                let mut pairs = [_mm512_setzero_si512(); GROUP];
                for (i, pairs) in pairs.iter_mut().enumerate().take(count) {
                    // The rows of the next group, which the processor cannot guess from so many runs at once.
                    prefetch(self.at(first + count + i, k + done));
                    // SAFETY: the mask admits only elements of the matrix.
                    *pairs =
                        unsafe { _mm512_maskz_loadu_epi16(columns, self.at(first + i, k + done)) };
                }
                transpose(&mut pairs);
                for (p, pairs) in pairs.iter().enumerate().take(left.div_ceil(2)) {
                    // SAFETY: the mask admits only `count` elements of this pair's row of the panel.
                    unsafe {
                        let target = panel.add((done / 2 + p) * width);
                        _mm512_mask_storeu_epi32(target.cast(), rows, *pairs);
                    }
                }
            }
        } else {
            // Element i of the first column, then of the second.
            let interleave = _mm512_set_epi16(
                31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                20, 4, 19, 3, 18, 2, 17, 1, 16, 0,
            );
            for done in (0..depth).step_by(2) {
                // SAFETY: the mask admits only elements of the matrix and of the panel; the second column is read only
                // where there is one.
                unsafe {
                    let low = _mm256_maskz_loadu_epi16(rows, self.at(first, k + done));
                    let high = if done + 1 < depth {
                        _mm256_maskz_loadu_epi16(rows, self.at(first, k + done + 1))
                    } else {
                        _mm256_setzero_si256()
                    };
                    let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
                    let pairs = _mm512_permutexvar_epi16(interleave, both);
                    let target = panel.add(done / 2 * width);
                    _mm512_mask_storeu_epi32(target.cast(), rows, pairs);
                }
            }
        }
    }

    /// The same for more than [`GROUP`] rows, whose columns lie one after another.
    ///
    /// # Safety
    /// As [`Self::pack_unchecked`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pack_wide(
        &self,
        panel: *mut u32,
        width: usize,
        (first, count): (usize, usize),
        (k, depth): (usize, usize),
    ) {
        let rows = low_bits(count);
        // Element i of the first column, then of the second, whose indices begin at 32.
        let interleave = _mm512_set_epi16(
            47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36,
            4, 35, 3, 34, 2, 33, 1, 32, 0,
        );
        let upper = _mm512_add_epi16(interleave, _mm512_set1_epi16(GROUP as i16));
        let stored = (rows >> GROUP) as __mmask16;
        for done in (0..depth).step_by(2) {
            let columns = [done, done + 1].map(|column| self.at(first, k + column));
            for column in columns {
                // What the next group reads.
                prefetch(column.wrapping_add(WIDE_GROUP));
            }
            // SAFETY: the mask admits only elements of the matrix and of the panel, in whose row the first 16 all are; the second
            // column is read only where there is one.
            unsafe {
                let low = _mm512_maskz_loadu_epi16(rows, columns[0]);
                let high = match done + 1 < depth {
                    true => _mm512_maskz_loadu_epi16(rows, columns[1]),
                    false => _mm512_setzero_si512(),
                };
                let target = panel.add(done / 2 * width);
                _mm512_storeu_si512(
                    target.cast(),
                    _mm512_permutex2var_epi16(low, interleave, high),
                );
                let pairs = _mm512_permutex2var_epi16(low, upper, high);
                _mm512_mask_storeu_epi32(target.add(GROUP).cast(), stored, pairs);
            }
        }
    }
}

/// Asks for the cache line of `element`, which need not exist.
#[inline(always)]
fn prefetch(element: *const i16) {
    // SAFETY: a prefetch has no effect that a program could see, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(element.cast()) };
}

/// The lowest `count` bits.
pub(super) fn low_bits(count: usize) -> u32 {
    if count >= 32 {
        u32::MAX
    } else {
        (1 << count) - 1
    }
}

/// Transposes a 16 x 16 matrix of 32-bit elements: first within the four 128-bit lanes, then the lanes.
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512i; GROUP]) {
    let mut t = [_mm512_setzero_si512(); GROUP];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // After this, lane l of `rows[4 g + c]` is column 4 l + c of the rows 4 g .. 4 g + 4.
    for g in 0..4 {
        rows[4 * g] = _mm512_unpacklo_epi64(t[4 * g], t[4 * g + 2]);
        rows[4 * g + 1] = _mm512_unpackhi_epi64(t[4 * g], t[4 * g + 2]);
        rows[4 * g + 2] = _mm512_unpacklo_epi64(t[4 * g + 1], t[4 * g + 3]);
        rows[4 * g + 3] = _mm512_unpackhi_epi64(t[4 * g + 1], t[4 * g + 3]);
    }
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    for c in 0..4 {
        t[c] = _mm512_shuffle_i32x4::<EVEN>(rows[c], rows[4 + c]);
        t[4 + c] = _mm512_shuffle_i32x4::<ODD>(rows[c], rows[4 + c]);
        t[8 + c] = _mm512_shuffle_i32x4::<EVEN>(rows[8 + c], rows[12 + c]);
        t[12 + c] = _mm512_shuffle_i32x4::<ODD>(rows[8 + c], rows[12 + c]);
    }
    for c in 0..4 {
        rows[c] = _mm512_shuffle_i32x4::<EVEN>(t[c], t[8 + c]);
        rows[8 + c] = _mm512_shuffle_i32x4::<ODD>(t[c], t[8 + c]);
        rows[4 + c] = _mm512_shuffle_i32x4::<EVEN>(t[4 + c], t[12 + c]);
        rows[12 + c] = _mm512_shuffle_i32x4::<ODD>(t[4 + c], t[12 + c]);
    }
}
