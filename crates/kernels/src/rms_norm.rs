//! RMSNorm (Zhang and Sennrich, arXiv 1910.07467), alone or joined with the residual stream's addition before it: a row is
//! read from memory once, and all that belongs to it is done while it is in the cache.

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;
use crate::lanes;

/// Rows that one task handles; fixed, so that the order in which weight gradients are added is.
const ROWS: usize = 32;

/// `y = weight * x * rstd`, with `rstd = 1 / sqrt(mean(x^2) + eps)` of every row.
///
/// `x` and `y` are `[rows, features]`, `weight` is `[features]`, `rstd` is `[rows]`. The normalised value is rounded to the
/// kind of `x` before the weight is applied, as Hugging Face does.
///
/// # Panics
/// When a size does not fit.
pub fn forward<X: Element, Y: Element>(
    x: &[X],
    weight: &[f32],
    eps: f32,
    y: &mut [Y],
    rstd: &mut [f32],
) {
    let block = checked_block(weight, rstd, [x.len(), y.len()]);
    let outputs = y.chunks_mut(block).zip(rstd.chunks_mut(ROWS));
    let blocks = x.chunks(block).zip(outputs);
    dispatch::for_each(blocks.map(|(x, (y, rstd))| ForwardRows {
        x,
        weight,
        eps,
        y,
        rstd,
    }));
}

/// What [`forward_residual`] fills.
#[derive(Debug)]
pub struct Residual<'a, X, Y> {
    /// The sum, `[rows, features]`.
    pub sum: &'a mut [X],
    /// Its norm, `[rows, features]`.
    pub y: &'a mut [Y],
    /// `[rows]`, for the backward pass.
    pub rstd: &'a mut [f32],
}

/// `x + delta`, rounded to their kind, and the norm of that sum as in [`forward`].
///
/// # Panics
/// When a size does not fit.
pub fn forward_residual<X: Element, Y: Element>(
    x: &[X],
    delta: &[X],
    weight: &[f32],
    eps: f32,
    out: Residual<'_, X, Y>,
) {
    let Residual { sum, y, rstd } = out;
    let block = checked_block(weight, rstd, [x.len(), delta.len(), sum.len(), y.len()]);
    let inputs = x.chunks(block).zip(delta.chunks(block));
    let outputs = y.chunks_mut(block).zip(rstd.chunks_mut(ROWS));
    let blocks = inputs.zip(sum.chunks_mut(block)).zip(outputs);
    dispatch::for_each(blocks.map(|(((x, delta), sum), (y, rstd))| ResidualRows {
        x,
        delta,
        sum,
        weight,
        eps,
        y,
        rstd,
    }));
}

/// What [`backward`] fills.
#[derive(Debug)]
pub struct Gradients<'a, X> {
    /// `[rows, features]`.
    pub d_x: &'a mut [X],
    /// Summed over all rows, `[features]`.
    pub d_weight: &'a mut [f32],
}

/// The gradients of [`forward`], from `d_y [rows, features]` and what went into and came out of it. `d_residual`, the gradient
/// that reaches `x` past the norm, is added to `d_x` where it is given; the sum is rounded once.
///
/// # Panics
/// When a size does not fit.
pub fn backward<Y: Element, X: Element>(
    d_y: &[Y],
    x: &[X],
    weight: &[f32],
    rstd: &[f32],
    d_residual: Option<&[X]>,
    out: Gradients<'_, X>,
) {
    let Gradients { d_x, d_weight } = out;
    let residual = d_residual.map_or(x.len(), <[X]>::len);
    let block = checked_block(weight, rstd, [d_y.len(), x.len(), residual, d_x.len()]);
    assert_eq!(d_weight.len(), weight.len(), "the weight and its gradient");
    let inputs = d_y.chunks(block).zip(x.chunks(block));
    let blocks = inputs.zip(rstd.chunks(ROWS)).zip(d_x.chunks_mut(block));
    let partial =
        dispatch::map(
            blocks
                .enumerate()
                .map(|(index, (((d_y, x), rstd), d_x))| BackwardRows {
                    d_y,
                    x,
                    weight,
                    rstd,
                    d_residual: d_residual.map(|d| &d[index * block..index * block + x.len()]),
                    d_x,
                }),
        );
    d_weight.fill(0.0);
    for partial in &partial {
        for (total, partial) in d_weight.iter_mut().zip(partial) {
            *total += partial;
        }
    }
}

/// The elements of one task's rows.
fn checked_block<const N: usize>(weight: &[f32], rstd: &[f32], lengths: [usize; N]) -> usize {
    let (rows, features) = (rstd.len(), weight.len());
    assert!(features > 0, "rows have no features");
    for length in lengths {
        assert_eq!(
            Some(length),
            rows.checked_mul(features),
            "{rows} rows of {features} features"
        );
    }
    ROWS * features
}

struct ForwardRows<'a, X, Y> {
    x: &'a [X],
    weight: &'a [f32],
    eps: f32,
    y: &'a mut [Y],
    rstd: &'a mut [f32],
}

impl<X: Element, Y: Element> Kernel for ForwardRows<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let features = self.weight.len();
        let rows = self.x.chunks_exact(features);
        let outputs = self.y.chunks_exact_mut(features).zip(self.rstd);
        for (x, (y, rstd)) in rows.zip(outputs) {
            *rstd = normalise(x, self.weight, self.eps, y);
        }
    }
}

struct ResidualRows<'a, X, Y> {
    x: &'a [X],
    delta: &'a [X],
    sum: &'a mut [X],
    weight: &'a [f32],
    eps: f32,
    y: &'a mut [Y],
    rstd: &'a mut [f32],
}

impl<X: Element, Y: Element> Kernel for ResidualRows<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let features = self.weight.len();
        let inputs = self
            .x
            .chunks_exact(features)
            .zip(self.delta.chunks_exact(features));
        let outputs = self
            .sum
            .chunks_exact_mut(features)
            .zip(self.y.chunks_exact_mut(features))
            .zip(self.rstd);
        for ((x, delta), ((sum, y), rstd)) in inputs.zip(outputs) {
            for ((sum, x), delta) in sum.iter_mut().zip(x).zip(delta) {
                *sum = X::round(x.widen() + delta.widen());
            }
            *rstd = normalise(sum, self.weight, self.eps, y);
        }
    }
}

/// One row; returns its `rstd`.
#[inline(always)]
fn normalise<X: Element, Y: Element>(x: &[X], weight: &[f32], eps: f32, y: &mut [Y]) -> f32 {
    let mean_square = lanes::sum(x, |x| x * x) / x.len() as f32;
    let rstd = 1.0 / (mean_square + eps).sqrt();
    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
        *y = Y::round(X::round(x.widen() * rstd).widen() * weight);
    }
    rstd
}

struct BackwardRows<'a, Y, X> {
    d_y: &'a [Y],
    x: &'a [X],
    weight: &'a [f32],
    rstd: &'a [f32],
    d_residual: Option<&'a [X]>,
    d_x: &'a mut [X],
}

impl<Y: Element, X: Element> Kernel for BackwardRows<'_, Y, X> {
    /// The weight's gradient from these rows.
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<I: InstructionSet>(self) -> Vec<f32> {
        let features = self.weight.len();
        let weight = self.weight;
        let mut d_weight = vec![0f32; features];
        for (row, &rstd) in self.rstd.iter().enumerate() {
            let range = row * features..(row + 1) * features;
            let (d_y, x) = (&self.d_y[range.clone()], &self.x[range.clone()]);
            let projection = lanes::sum_of_products(d_y, x, weight) * rstd / features as f32;
            let d_x = &mut self.d_x[range.clone()];
            let terms = d_x
                .iter_mut()
                .zip(&mut d_weight)
                .zip(d_y)
                .zip(x)
                .zip(weight);
            match self.d_residual {
                None => {
                    for ((((d_x, d_weight), d_y), x), weight) in terms {
                        let x_hat = x.widen() * rstd;
                        *d_weight += d_y.widen() * x_hat;
                        *d_x = X::round((d_y.widen() * weight - x_hat * projection) * rstd);
                    }
                }
                Some(d_residual) => {
                    for (((((d_x, d_weight), d_y), x), weight), d) in terms.zip(&d_residual[range])
                    {
                        let x_hat = x.widen() * rstd;
                        *d_weight += d_y.widen() * x_hat;
                        let own = (d_y.widen() * weight - x_hat * projection) * rstd;
                        *d_x = X::round(d.widen() + own);
                    }
                }
            }
        }
        d_weight
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{assert_close, bits, normal, numbers, unfilled, wide};

    const EPS: f32 = 1e-6;

    /// `rstd` of every row, in fp64.
    fn rstds(x: &[f64], features: usize) -> Vec<f64> {
        x.chunks_exact(features)
            .map(|row| {
                let mean_square = row.iter().map(|x| x * x).sum::<f64>() / features as f64;
                1.0 / (mean_square + f64::from(EPS)).sqrt()
            })
            .collect()
    }

    /// For the kinds of the residual stream and of the output, sizes around the blocks and vectors.
    fn follows_the_formula<X: Element, Y: Element>(kinds: &str, close_x: f64, close_y: f64) {
        for (rows, features) in [(0, 8), (1, 1), (3, 65), (32, 64), (33, 100), (70, 896)] {
            let label = format!("{kinds}, {rows} x {features}");
            let len = rows * features;
            let (x, delta) = (numbers::<X>(len, 1, 1.0), numbers::<X>(len, 2, 1.0));
            let weight: Vec<f32> = normal(features, 3).iter().map(|w| 1.0 + 0.2 * w).collect();
            let (d_y, d_residual) = (numbers::<Y>(len, 4, 1.0), numbers::<X>(len, 5, 1.0));
            let (exact, exact_rstd) = (wide(&x), rstds(&wide(&x), features));

            let (mut y, mut rstd) = (unfilled::<Y>(len), unfilled::<f32>(rows));
            forward(&x, &weight, EPS, &mut y, &mut rstd);
            let expected: Vec<f64> = (0..len)
                .map(|i| exact[i] * exact_rstd[i / features] * f64::from(weight[i % features]))
                .collect();
            assert_close(&format!("y, {label}"), &y, &expected, close_x + close_y);
            assert_close(&format!("rstd, {label}"), &rstd, &exact_rstd, 2e-6);

            // The norm of the sum is the norm of the rounded sum, to the bit.
            let added = |(x, delta): (&X, &X)| X::round(x.widen() + delta.widen());
            let total: Vec<X> = x.iter().zip(&delta).map(added).collect();
            let (mut y_alone, mut rstd_alone) = (unfilled::<Y>(len), unfilled::<f32>(rows));
            forward(&total, &weight, EPS, &mut y_alone, &mut rstd_alone);
            let mut sum = unfilled::<X>(len);
            let (mut y, mut rstd_of_sum) = (unfilled::<Y>(len), unfilled::<f32>(rows));
            let out = Residual {
                sum: &mut sum,
                y: &mut y,
                rstd: &mut rstd_of_sum,
            };
            forward_residual(&x, &delta, &weight, EPS, out);
            assert_eq!(bits(&sum), bits(&total), "sum, {label}");
            assert_eq!(bits(&y), bits(&y_alone), "y of sum, {label}");
            assert_eq!(bits(&rstd_of_sum), bits(&rstd_alone), "{label}");

            let (mut expected_d_x, mut expected_d_w) = (vec![0.0; len], vec![0.0; features]);
            for (row, rstd) in exact_rstd.iter().enumerate() {
                let at = |i: usize| row * features + i;
                let d_x_hat = |i: usize| f64::from(d_y[at(i)].widen()) * f64::from(weight[i]);
                let x_hat = |i: usize| exact[at(i)] * rstd;
                let dot: f64 = (0..features).map(|i| d_x_hat(i) * x_hat(i)).sum();
                for i in 0..features {
                    let projected = x_hat(i) * dot / features as f64;
                    expected_d_x[at(i)] = (d_x_hat(i) - projected) * rstd;
                    expected_d_w[i] += f64::from(d_y[at(i)].widen()) * x_hat(i);
                }
            }
            for residual in [None, Some(&d_residual[..])] {
                let (mut d_x, mut d_weight) = (unfilled::<X>(len), unfilled::<f32>(features));
                let out = Gradients {
                    d_x: &mut d_x,
                    d_weight: &mut d_weight,
                };
                backward(&d_y, &x, &weight, &rstd, residual, out);
                let mut expected = expected_d_x.clone();
                for (expected, d) in expected.iter_mut().zip(residual.unwrap_or_default()) {
                    *expected += f64::from(d.widen());
                }
                let label = format!("{label}, residual {}", residual.is_some());
                assert_close(&format!("d_x, {label}"), &d_x, &expected, 2.0 * close_x);
                let close = 2e-5;
                assert_close(&format!("d_w, {label}"), &d_weight, &expected_d_w, close);
            }
        }
    }

    /// What training combines: fp32, bf16, and autocast.
    #[test]
    fn every_pair_of_kinds_follows_the_formula() {
        follows_the_formula::<f32, f32>("fp32", 3e-6, 0.0);
        follows_the_formula::<bf16, bf16>("bf16", 4e-3, 4e-3);
        follows_the_formula::<f32, bf16>("fp32 to bf16", 3e-6, 4e-3);
    }

    #[test]
    fn nan_stays_in_its_row() {
        let (mut y, mut rstd) = ([0f32; 4], [0f32; 2]);
        forward(
            &[1.0, f32::NAN, 1.0, 1.0],
            &[1.0; 2],
            EPS,
            &mut y,
            &mut rstd,
        );
        assert_eq!(y.map(f32::is_nan), [true, true, false, false]);
    }

    #[test]
    #[should_panic(expected = "2 rows of 3 features")]
    fn rows_of_another_length_are_noticed() {
        forward(&[0f32; 7], &[1.0; 3], EPS, &mut [0f32; 6], &mut [0.0; 2]);
    }
}
