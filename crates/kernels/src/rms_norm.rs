//! RMSNorm (Zhang and Sennrich, arXiv 1910.07467), alone or joined with the residual stream's addition before it: a row is
//! read from memory once, and all that belongs to it is done while it is in the cache.

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;
use crate::lanes::{self, Lanes, by_lanes};

/// Rows that one task handles; fixed, so that the order in which weight gradients are added is.
const ROWS: usize = 32;

/// What a norm is, besides the rows that it is of.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[features]`.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
    /// The normalised value is multiplied by the weight and then rounded. Else it is rounded to the kind of `x` before, too.
    pub rounds_last: bool,
}

impl<'a> Norm<'a> {
    /// As Llama has it: rounded before the weight is applied.
    pub fn new(weight: &'a [f32], eps: f32) -> Self {
        Self {
            weight,
            eps,
            rounds_last: false,
        }
    }
}

/// `y = weight * x * rstd`, with `rstd = 1 / sqrt(mean(x^2) + eps)` of every row.
///
/// `x` and `y` are `[rows, features]`, `rstd` is `[rows]`.
///
/// # Panics
/// When a size does not fit.
pub fn forward<X: Element, Y: Element>(x: &[X], norm: Norm<'_>, y: &mut [Y], rstd: &mut [f32]) {
    let block = checked_block(norm.weight, rstd, [x.len(), y.len()]);
    let outputs = y.chunks_mut(block).zip(rstd.chunks_mut(ROWS));
    let blocks = x.chunks(block).zip(outputs);
    dispatch::for_each(blocks.map(|(x, (y, rstd))| ForwardRows { x, norm, y, rstd }));
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

/// `x + scale * delta`, rounded to their kind, and the norm of that sum as in [`forward`].
///
/// # Panics
/// When a size does not fit.
pub fn forward_residual<X: Element, Y: Element>(
    x: &[X],
    delta: &[X],
    scale: f32,
    norm: Norm<'_>,
    out: Residual<'_, X, Y>,
) {
    let Residual { sum, y, rstd } = out;
    let block = checked_block(
        norm.weight,
        rstd,
        [x.len(), delta.len(), sum.len(), y.len()],
    );
    let inputs = x.chunks(block).zip(delta.chunks(block));
    let outputs = y.chunks_mut(block).zip(rstd.chunks_mut(ROWS));
    let blocks = inputs.zip(sum.chunks_mut(block)).zip(outputs);
    dispatch::for_each(blocks.map(|(((x, delta), sum), (y, rstd))| ResidualRows {
        x,
        delta,
        scale,
        sum,
        norm,
        y,
        rstd,
    }));
}

/// What [`forward_branch`] fills.
#[derive(Debug)]
pub struct Branch<'a, X, Y> {
    /// The sum, `[rows, features]`.
    pub sum: &'a mut [X],
    /// Of the branch, `[rows]`.
    pub branch_rstd: &'a mut [f32],
    /// The norm of the sum, `[rows, features]`; empty where there is none.
    pub y: &'a mut [Y],
    /// Of the sum, `[rows]`; empty where it has no norm.
    pub rstd: &'a mut [f32],
}

/// `x + norm(branch)`, where the norm is rounded to the kind of the branch and the sum to that of `x`; and, where `next` is
/// given, the norm of the sum.
///
/// # Panics
/// When a size does not fit.
pub fn forward_branch<X: Element, Y: Element>(
    x: &[X],
    branch: &[Y],
    norm: Norm<'_>,
    next: Option<Norm<'_>>,
    out: Branch<'_, X, Y>,
) {
    let Branch {
        sum,
        branch_rstd,
        y,
        rstd,
    } = out;
    let lengths = [x.len(), branch.len(), sum.len()];
    let block = checked_block(norm.weight, branch_rstd, lengths);
    if let Some(next) = next {
        checked_block(next.weight, rstd, [x.len(), y.len()]);
    }
    // Endless empty slices where there is no next norm.
    let ys = y
        .chunks_mut(block)
        .chain(std::iter::repeat_with(Default::default));
    let rstds = rstd
        .chunks_mut(ROWS)
        .chain(std::iter::repeat_with(Default::default));
    let inputs = x.chunks(block).zip(branch.chunks(block));
    let outputs = sum.chunks_mut(block).zip(branch_rstd.chunks_mut(ROWS));
    let blocks = inputs.zip(outputs).zip(ys.zip(rstds));
    dispatch::for_each(blocks.map(
        |(((x, branch), (sum, branch_rstd)), (y, rstd))| BranchRows {
            x,
            branch,
            norm,
            next,
            out: Branch {
                sum,
                branch_rstd,
                y,
                rstd,
            },
        },
    ));
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
    norm: Norm<'a>,
    y: &'a mut [Y],
    rstd: &'a mut [f32],
}

impl<X: Element, Y: Element> Kernel for ForwardRows<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let features = self.norm.weight.len();
        let rows = self.x.chunks_exact(features);
        let outputs = self.y.chunks_exact_mut(features).zip(self.rstd);
        for (x, (y, rstd)) in rows.zip(outputs) {
            *rstd = normalise::<I, X, Y>(x, self.norm, y);
        }
    }
}

struct ResidualRows<'a, X, Y> {
    x: &'a [X],
    delta: &'a [X],
    scale: f32,
    sum: &'a mut [X],
    norm: Norm<'a>,
    y: &'a mut [Y],
    rstd: &'a mut [f32],
}

impl<X: Element, Y: Element> Kernel for ResidualRows<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let features = self.norm.weight.len();
        let scale = self.scale;
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
            by_lanes!(features, [x, delta], [sum] => {
                (Lanes::<I>::load(x) + Lanes::load(delta) * scale).store(sum);
            });
            *rstd = normalise::<I, X, Y>(sum, self.norm, y);
        }
    }
}

struct BranchRows<'a, X, Y> {
    x: &'a [X],
    branch: &'a [Y],
    norm: Norm<'a>,
    next: Option<Norm<'a>>,
    out: Branch<'a, X, Y>,
}

impl<X: Element, Y: Element> Kernel for BranchRows<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let Self {
            x,
            branch,
            norm,
            next,
            out,
        } = self;
        let features = norm.weight.len();
        let mut normed = vec![Y::round(0.0); features];
        for (row, branch_rstd) in out.branch_rstd.iter_mut().enumerate() {
            let range = row * features..(row + 1) * features;
            *branch_rstd = normalise::<I, Y, Y>(&branch[range.clone()], norm, &mut normed);
            let (sum, x) = (&mut out.sum[range.clone()], &x[range.clone()]);
            by_lanes!(features, [x, normed], [sum] => {
                (Lanes::<I>::load(x) + Lanes::load(normed)).store(sum);
            });
            if let Some(next) = next {
                out.rstd[row] = normalise::<I, X, Y>(sum, next, &mut out.y[range]);
            }
        }
    }
}

/// One row; returns its `rstd`.
#[inline(always)]
fn normalise<I: InstructionSet, X: Element, Y: Element>(
    x: &[X],
    norm: Norm<'_>,
    y: &mut [Y],
) -> f32 {
    let mean_square = lanes::sum::<I, _>(x, |x| x * x) / x.len() as f32;
    let rstd = 1.0 / (mean_square + norm.eps).sqrt();
    let weight = norm.weight;
    by_lanes!(x.len(), [x, weight], [y] => {
        let normalised = Lanes::<I>::load(x) * rstd;
        let normalised = match norm.rounds_last {
            true => normalised,
            false => normalised.rounded_to::<X>(),
        };
        (normalised * Lanes::load(weight)).store(y);
    });
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
            let projection =
                lanes::sum_of_products::<I, _, _>(d_y, x, weight) * rstd / features as f32;
            let d_x = &mut self.d_x[range.clone()];
            let gradient = RowGradient { rstd, projection };
            match self.d_residual {
                None => {
                    by_lanes!(features, [d_y, x, weight], [d_x, d_weight] => {
                        let own = gradient.of::<I, Y, X>(d_y, x, weight, d_weight);
                        own.store(d_x);
                    });
                }
                Some(d_residual) => {
                    let d_residual = &d_residual[range];
                    by_lanes!(features, [d_y, x, weight, d_residual], [d_x, d_weight] => {
                        let own = gradient.of::<I, Y, X>(d_y, x, weight, d_weight);
                        (Lanes::load(d_residual) + own).store(d_x);
                    });
                }
            }
        }
        d_weight
    }
}

/// What the gradients of a row's elements have in common.
#[derive(Clone, Copy)]
struct RowGradient {
    rstd: f32,
    projection: f32,
}

impl RowGradient {
    /// Of some elements of `x`; adds what they contribute to the weight's.
    #[inline(always)]
    fn of<I: InstructionSet, Y: Element, X: Element>(
        self,
        d_y: &[Y],
        x: &[X],
        weight: &[f32],
        d_weight: &mut [f32],
    ) -> Lanes<I> {
        let (d_y, x_hat) = (Lanes::<I>::load(d_y), Lanes::load(x) * self.rstd);
        (Lanes::load(d_weight) + d_y * x_hat).store(d_weight);
        (d_y * Lanes::load(weight) - x_hat * self.projection) * self.rstd
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
            let norm = Norm::new(&weight, EPS);
            forward(&x, norm, &mut y, &mut rstd);
            let expected: Vec<f64> = (0..len)
                .map(|i| exact[i] * exact_rstd[i / features] * f64::from(weight[i % features]))
                .collect();
            assert_close(&format!("y, {label}"), &y, &expected, close_x + close_y);
            assert_close(&format!("rstd, {label}"), &rstd, &exact_rstd, 2e-6);

            // The norm of the sum is the norm of the rounded sum, to the bit.
            let added = |(x, delta): (&X, &X)| X::round(x.widen() + delta.widen());
            let total: Vec<X> = x.iter().zip(&delta).map(added).collect();
            let (mut y_alone, mut rstd_alone) = (unfilled::<Y>(len), unfilled::<f32>(rows));
            forward(&total, norm, &mut y_alone, &mut rstd_alone);
            let mut sum = unfilled::<X>(len);
            let (mut y, mut rstd_of_sum) = (unfilled::<Y>(len), unfilled::<f32>(rows));
            let out = Residual {
                sum: &mut sum,
                y: &mut y,
                rstd: &mut rstd_of_sum,
            };
            forward_residual(&x, &delta, 1.0, norm, out);
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

    /// The norm of a branch, its sum with the residual stream, and the norm of that are what they are one after another, to
    /// the bit; so is a scaled branch without a norm.
    fn is_the_sum_of_its_parts<X: Element, Y: Element>() {
        for (rows, features) in [(0, 8), (1, 1), (33, 100)] {
            let len = rows * features;
            let (x, branch) = (numbers::<X>(len, 1, 1.0), numbers::<Y>(len, 2, 1.0));
            let weights: [Vec<f32>; 2] = [3, 4].map(|seed| normal(features, seed));
            for rounds_last in [false, true] {
                let [norm, next] = [0, 1].map(|i| Norm {
                    weight: &weights[i],
                    eps: EPS,
                    rounds_last,
                });
                let (mut normed, mut rstd) = (unfilled::<Y>(len), unfilled::<f32>(rows));
                forward(&branch, norm, &mut normed, &mut rstd);
                let parts = x.iter().zip(&normed);
                let sum: Vec<X> = parts
                    .map(|(x, y)| X::round(x.widen() + y.widen()))
                    .collect();
                let (mut y, mut sum_rstd) = (unfilled::<Y>(len), unfilled::<f32>(rows));
                forward(&sum, next, &mut y, &mut sum_rstd);
                for next in [None, Some(next)] {
                    let (mut found_sum, mut found_rstd) =
                        (unfilled::<X>(len), unfilled::<f32>(rows));
                    let kept = if next.is_some() { rows } else { 0 };
                    let mut found_y = unfilled::<Y>(kept * features);
                    let mut found_sum_rstd = unfilled::<f32>(kept);
                    let out = Branch {
                        sum: &mut found_sum,
                        branch_rstd: &mut found_rstd,
                        y: &mut found_y,
                        rstd: &mut found_sum_rstd,
                    };
                    forward_branch(&x, &branch, norm, next, out);
                    assert_eq!(bits(&found_sum), bits(&sum));
                    assert_eq!(bits(&found_rstd), bits(&rstd));
                    if next.is_some() {
                        assert_eq!(bits(&found_y), bits(&y));
                        assert_eq!(bits(&found_sum_rstd), bits(&sum_rstd));
                    }
                }
            }
            let scaled: Vec<X> = x
                .iter()
                .map(|x| X::round(x.widen() + x.widen() * 0.3))
                .collect();
            let (mut sum, mut y) = (unfilled::<X>(len), unfilled::<Y>(len));
            let mut rstd = unfilled::<f32>(rows);
            let out = Residual {
                sum: &mut sum,
                y: &mut y,
                rstd: &mut rstd,
            };
            forward_residual(&x, &x, 0.3, Norm::new(&weights[0], EPS), out);
            assert_eq!(bits(&sum), bits(&scaled));
        }
    }

    #[test]
    fn branches_are_normed_and_scaled_on_their_way_into_the_sum() {
        is_the_sum_of_its_parts::<f32, f32>();
        is_the_sum_of_its_parts::<bf16, bf16>();
        is_the_sum_of_its_parts::<f32, bf16>();
    }

    /// With the weight applied before the only rounding: nearer to the formula than with two.
    #[test]
    fn a_norm_that_rounds_last_rounds_once() {
        let (rows, features) = (7, 90);
        let x = numbers::<bf16>(rows * features, 1, 1.0);
        let weight = normal(features, 2);
        let norm = Norm {
            weight: &weight,
            eps: EPS,
            rounds_last: true,
        };
        let (mut y, mut rstd) = (unfilled::<bf16>(x.len()), unfilled::<f32>(rows));
        forward(&x, norm, &mut y, &mut rstd);
        let exact = rstds(&wide(&x), features);
        let expected: Vec<f64> = (0..x.len())
            .map(|i| {
                f64::from(x[i].widen()) * exact[i / features] * f64::from(weight[i % features])
            })
            .collect();
        // Half of the last of bf16's 8 bits, which is 2^-8 of the smallest numbers that have them.
        for (y, expected) in y.iter().zip(&expected) {
            let off = (f64::from(y.widen()) - expected).abs();
            assert!(off <= 3.91e-3 * expected.abs(), "{y} {expected}");
        }
    }

    #[test]
    fn nan_stays_in_its_row() {
        let (mut y, mut rstd) = ([0f32; 4], [0f32; 2]);
        let norm = Norm::new(&[1.0; 2], EPS);
        forward(&[1.0, f32::NAN, 1.0, 1.0], norm, &mut y, &mut rstd);
        assert_eq!(y.map(f32::is_nan), [true, true, false, false]);
    }

    #[test]
    #[should_panic(expected = "2 rows of 3 features")]
    fn rows_of_another_length_are_noticed() {
        let norm = Norm::new(&[1.0; 3], EPS);
        forward(&[0f32; 7], norm, &mut [0f32; 6], &mut [0.0; 2]);
    }
}
