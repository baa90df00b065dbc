//! Products of bf16 matrices on processors with AVX512-BF16: with an fp32 result, or one that is rounded once.
//!
//! The scheme is that of Goto and van de Geijn (ACM TOMS 34:3, 2008): blocks of both operands are copied into panels that
//! the innermost loop reads from end to end, sized for the caches. Every element of the result is the sum of the same terms
//! in the same order whatever the number of threads.
//!
//! ```
//! use half::bf16;
//! use tandem_kernels::Accumulate;
//! use tandem_kernels::avx512_bf16::Avx512Bf16;
//! use tandem_kernels::matmul::{MatrixMut, MatrixView, product};
//!
//! let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(bf16::from_f32);
//! let a = MatrixView::new(&a, 2, 3, 3, 1);
//! let mut out = [0f32; 4];
//! if let Some(cpu) = Avx512Bf16::detect() {
//!     let target = MatrixMut::new(&mut out, 2, 2, 2);
//!     product(cpu, target, a, a.transposed(), None, Accumulate::First);
//!     assert_eq!(out, [14.0, 32.0, 32.0, 77.0]);
//! }
//! ```

mod blocks;
mod pack;
pub(crate) mod panels;
mod tile;
mod view;

use std::ops::Range;

use half::bf16;

use crate::accumulate::Accumulate;
use crate::avx512_bf16::Avx512Bf16;
use blocks::{Problem, Target};
pub use view::{MatrixMut, MatrixView};

/// Writes `a [m, k] . b [k, n] (+ bias [n])` to `out [m, n]`, or adds it to what is there.
///
/// # Panics
/// When sizes do not fit, or `k` is 0.
pub fn product(
    cpu: Avx512Bf16,
    out: MatrixMut<'_, f32>,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
    bias: Option<&[f32]>,
    accumulate: Accumulate,
) {
    let target = Target::sums(out, accumulate == Accumulate::Add);
    Problem::new(cpu, target, a, b, bias).solve();
}

/// A product `a [m, r] . b [r, columns]` that is added to some columns of another one; its depth `r` is small beside that one's.
#[derive(Debug, Clone)]
pub struct LowRank<'a> {
    /// Of as many rows as the result.
    pub a: MatrixView<'a>,
    /// Of as many columns as it is added to.
    pub b: MatrixView<'a>,
    /// What it is added to.
    pub columns: Range<usize>,
}

/// Writes `a [m, k] . b [k, n] (+ bias [n]) + plus`, rounded once, to `out [m, n]`.
///
/// What `plus` adds costs its share of the arithmetic and no other pass over the result: it makes the sums a little longer. Its
/// columns are in ascending order, and apart.
///
/// # Panics
/// When sizes do not fit, or a depth is 0.
pub fn rounded_product(
    cpu: Avx512Bf16,
    out: MatrixMut<'_, bf16>,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
    bias: Option<&[f32]>,
    plus: &[LowRank<'_>],
) {
    let problem = Problem::new(cpu, Target::rounded(out), a, b, bias);
    problem.plus(plus).solve();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, normal, numbers, wide};

    /// A matrix `[rows, columns]` of random numbers, stored as it is or transposed, with some elements between its rows.
    struct Stored {
        data: Vec<bf16>,
        rows: usize,
        columns: usize,
        transposed: bool,
    }

    /// Elements between the rows.
    const GAP: usize = 3;

    impl Stored {
        fn new(rows: usize, columns: usize, transposed: bool, seed: u64) -> Self {
            let data = numbers((rows + GAP) * (columns + GAP), seed, 0.3);
            Self {
                data,
                rows,
                columns,
                transposed,
            }
        }

        fn view(&self) -> MatrixView<'_> {
            if self.transposed {
                MatrixView::new(&self.data, self.columns, self.rows, self.rows + GAP, 1)
                    .transposed()
            } else {
                let stride = self.columns + GAP;
                MatrixView::new(&self.data, self.rows, self.columns, stride, 1)
            }
        }

        /// In fp64, row by row.
        fn exact(&self) -> Vec<f64> {
            let at = |row, column| match self.transposed {
                true => column * (self.rows + GAP) + row,
                false => row * (self.columns + GAP) + column,
            };
            let rows = 0..self.rows;
            rows.flat_map(|row| (0..self.columns).map(move |column| (row, column)))
                .map(|(row, column)| f64::from(self.data[at(row, column)].to_f32()))
                .collect()
        }
    }

    fn exact_product(a: &Stored, b: &Stored) -> Vec<f64> {
        let (k, n) = (a.columns, b.columns);
        let (a, b) = (a.exact(), b.exact());
        let mut out = vec![0.0; a.len() / k * n];
        for (a, out) in a.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
            for (a, b) in a.iter().zip(b.chunks_exact(n)) {
                for (out, b) in out.iter_mut().zip(b) {
                    *out += a * b;
                }
            }
        }
        out
    }

    /// Shapes around the tiles and blocks, all four layouts, both kinds of result.
    #[test]
    fn products_match_fp64_arithmetic() {
        let Some(cpu) = Avx512Bf16::detect() else {
            return;
        };
        for (m, k, n) in [
            (1, 1, 1),
            (13, 7, 33),
            (5, 9, 57),
            (28, 64, 64),
            (129, 1300, 47),
            (300, 33, 1100),
        ] {
            for layout in 0..4 {
                let a = Stored::new(m, k, layout & 1 == 1, 1);
                let b = Stored::new(k, n, layout & 2 == 2, 2);
                let exact = exact_product(&a, &b);
                let label = format!("[{m}, {k}] . [{k}, {n}], layout {layout}");

                let bias = normal(n, 3);
                let mut out = vec![bf16::NAN; m * n];
                let target = MatrixMut::new(&mut out, m, n, n);
                rounded_product(cpu, target, a.view(), b.view(), Some(&bias), &[]);
                let biases = wide(&bias).into_iter().cycle();
                let with_bias: Vec<f64> = exact.iter().zip(biases).map(|(x, b)| x + b).collect();
                assert_close(&format!("{label}, bf16"), &out, &with_bias, 6e-3);

                // A result inside a wider buffer, whose other columns stay.
                let mut buffer = vec![7f32; m * (n + 5)];
                let mut multiply = |bias: Option<&[f32]>, accumulate| {
                    let out = MatrixMut::new(&mut buffer[2..], m, n, n + 5);
                    product(cpu, out, a.view(), b.view(), bias, accumulate);
                    for row in buffer.chunks_exact(n + 5) {
                        assert_eq!((&row[..2], &row[2 + n..]), (&[7.0; 2][..], &[7.0; 3][..]));
                    }
                    let rows = buffer.chunks_exact(n + 5);
                    rows.flat_map(|row| row[2..2 + n].to_vec())
                        .collect::<Vec<_>>()
                };
                let first = multiply(None, Accumulate::First);
                assert_close(&label, &first, &exact, 2e-5);
                let second = multiply(None, Accumulate::Add);
                let twice: Vec<f64> = exact.iter().map(|x| 2.0 * x).collect();
                assert_close(&format!("{label}, twice"), &second, &twice, 4e-5);
                let biased = multiply(Some(&bias), Accumulate::First);
                assert_close(
                    &format!("{label}, fp32 with bias"),
                    &biased,
                    &with_bias,
                    2e-5,
                );
            }
        }
    }

    /// Odd depths and even ones, one pass and several, columns with nothing added before, between and after them, in all layouts.
    #[test]
    fn low_rank_products_are_added_before_the_sum_is_rounded() {
        let Some(cpu) = Avx512Bf16::detect() else {
            return;
        };
        for (m, k, n, r) in [
            (1, 1, 4, 1),
            (13, 7, 33, 3),
            (28, 64, 64, 16),
            (129, 1300, 47, 5),
            (300, 33, 2300, 48),
            (15, 2600, 70, 32),
        ] {
            for layout in 0..4 {
                let (first, second) = (layout & 1 == 1, layout & 2 == 2);
                let a = Stored::new(m, k, first, 1);
                let b = Stored::new(k, n, second, 2);
                let bias = normal(n, 3);
                let biases = wide(&bias).into_iter().cycle();
                let exact = exact_product(&a, &b).into_iter().zip(biases);
                let mut exact: Vec<f64> = exact.map(|(x, b)| x + b).collect();
                let ranges = [0..n / 4, n / 4..n / 2, n / 2 + 1..n - 1];
                let stored = ranges.map(|columns| {
                    let low_a = Stored::new(m, r, second, 4 + columns.start as u64);
                    let low_b = Stored::new(r, columns.len(), first, 5 + columns.start as u64);
                    (low_a, low_b, columns)
                });
                let mut plus = Vec::new();
                for (low_a, low_b, columns) in stored.iter().filter(|it| !it.2.is_empty()) {
                    let added = exact_product(low_a, low_b);
                    let rows = exact.chunks_exact_mut(n);
                    for (row, added) in rows.zip(added.chunks_exact(columns.len())) {
                        for (sum, x) in row[columns.clone()].iter_mut().zip(added) {
                            *sum += x;
                        }
                    }
                    plus.push(LowRank {
                        a: low_a.view(),
                        b: low_b.view(),
                        columns: columns.clone(),
                    });
                }
                let mut out = vec![bf16::NAN; m * n];
                let target = MatrixMut::new(&mut out, m, n, n);
                rounded_product(cpu, target, a.view(), b.view(), Some(&bias), &plus);
                let label = format!("[{m}, {k}] . [{k}, {n}] and {r}, layout {layout}");
                // Rounded once: half a unit in the last place of bf16.
                assert_close(&label, &out, &exact, 4e-3);
            }
        }
    }

    #[test]
    #[should_panic(expected = "into columns 1..3 of (2, 3), from 2 on")]
    fn columns_that_overlap_are_noticed() {
        let data = [bf16::ONE; 6];
        let a = MatrixView::new(&data, 2, 2, 2, 1);
        let b = MatrixView::new(&data, 2, 3, 3, 1);
        let low = |columns: Range<usize>| LowRank {
            a,
            b: MatrixView::new(&data, 2, columns.len(), 3, 1),
            columns,
        };
        let mut out = [bf16::ZERO; 6];
        match Avx512Bf16::detect() {
            Some(cpu) => {
                let out = MatrixMut::new(&mut out, 2, 3, 3);
                rounded_product(cpu, out, a, b, None, &[low(0..2), low(1..3)]);
            }
            None => panic!("into columns 1..3 of (2, 3), from 2 on cannot be asked for here"),
        }
    }

    /// Two passes over the reduced dimension, and blocks in every other.
    #[test]
    fn nan_and_infinity_stay_in_their_row() {
        let Some(cpu) = Avx512Bf16::detect() else {
            return;
        };
        let (m, k, n) = (3, 2000, 40);
        let mut a = vec![bf16::ONE; m * k];
        a[k + 1999] = bf16::NAN;
        a[2 * k] = bf16::INFINITY;
        let b = vec![bf16::ONE; k * n];
        let mut out = vec![bf16::ZERO; m * n];
        let (a, b) = (
            MatrixView::new(&a, m, k, k, 1),
            MatrixView::new(&b, k, n, n, 1),
        );
        rounded_product(cpu, MatrixMut::new(&mut out, m, n, n), a, b, None, &[]);
        assert!(out[..n].iter().all(|x| x.to_f32() == 2000.0));
        assert!(out[n..2 * n].iter().all(|x| x.is_nan()));
        assert!(out[2 * n..].iter().all(|x| *x == bf16::INFINITY));
    }

    #[test]
    #[should_panic(expected = "[2, 3] . [2, 3]")]
    fn matrices_that_do_not_fit_are_noticed() {
        let data = [bf16::ONE; 6];
        let a = MatrixView::new(&data, 2, 3, 3, 1);
        let mut out = [0f32; 6];
        match Avx512Bf16::detect() {
            Some(cpu) => {
                let out = MatrixMut::new(&mut out, 2, 3, 3);
                product(cpu, out, a, a, None, Accumulate::First);
            }
            None => panic!("[2, 3] . [2, 3] cannot be asked for here"),
        }
    }
}
