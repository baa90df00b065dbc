//! RMSNorm (Zhang and Sennrich, arXiv 1910.07467) with fp32 arithmetic inside, alone or joined with the residual
//! stream's addition before it.

pub mod aten;
mod fused;

use tandem_torch::{Kind, Tensor};

/// What [`forward_residual`] computes.
#[derive(Debug)]
pub struct Residual {
    /// The residual stream after the addition, in its own kind.
    pub sum: Tensor,
    /// Its norm, in the kind asked for.
    pub y: Tensor,
    /// fp32 `[.., 1]`, for the backward pass.
    pub rstd: Tensor,
}

/// `y = weight * x * rstd`, with `rstd = 1 / sqrt(mean(x^2) + eps)` over the last dimension.
///
/// `x` is `[.., features]`, `weight` is `[features]`. Returns `y` in kind `out` and `rstd` as fp32 `[.., 1]`,
/// which [`backward`] needs.
///
/// As Hugging Face does, the normalised value is rounded to the kind of `x` before the weight is applied.
pub fn forward(x: &Tensor, weight: &Tensor, eps: f64, out: Kind) -> (Tensor, Tensor) {
    match fused::forward(x, None, weight, eps, out) {
        Some(Residual { y, rstd, .. }) => (y, rstd),
        None => aten::forward(x, weight, eps, out),
    }
}

/// `x + delta` (rounded to the kind of `x`) and the norm of that sum, in one pass over the rows.
pub fn forward_residual(
    x: &Tensor,
    delta: &Tensor,
    weight: &Tensor,
    eps: f64,
    out: Kind,
) -> Residual {
    let delta = delta.to_kind(x.kind());
    fused::forward(x, Some(&delta), weight, eps, out).unwrap_or_else(|| {
        let sum = x + delta;
        let (y, rstd) = aten::forward(&sum, weight, eps, out);
        Residual { sum, y, rstd }
    })
}

/// Gradients of [`forward`]: `d_x` in the kind of `x`, and `d_weight` as fp32 `[features]`, summed over all
/// leading dimensions.
pub fn backward(d_y: &Tensor, x: &Tensor, weight: &Tensor, rstd: &Tensor) -> (Tensor, Tensor) {
    fused::backward(d_y, x, weight, rstd, None)
        .unwrap_or_else(|| aten::backward(d_y, x, weight, rstd))
}

/// As [`backward`], with `d_residual`, the gradient that reaches `x` past the norm, added to `d_x` in the same pass.
///
/// `d_residual` has the shape of `x`. The sum is rounded once.
pub fn backward_residual(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    d_residual: &Tensor,
) -> (Tensor, Tensor) {
    let d_residual = d_residual.to_kind(x.kind());
    fused::backward(d_y, x, weight, rstd, Some(&d_residual)).unwrap_or_else(|| {
        let (d_x, d_weight) = aten::backward(d_y, x, weight, rstd);
        (d_residual + d_x, d_weight)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, dot, numeric_gradient, randn};

    #[test]
    fn matches_finite_differences() {
        for shape in [vec![5i64, 16], vec![3, 4, 8], vec![0, 8]] {
            let features = *shape.last().unwrap();
            let x = randn(&shape, 1);
            let w = randn(&[features], 2);
            let d_y = randn(&shape, 3);
            let (y, rstd) = forward(&x, &w, 1e-6, Kind::Float);
            let (d_x, d_w) = backward(&d_y, &x, &w, &rstd);

            let output = |x: &Tensor, w: &Tensor| {
                let [x, w] = [x, w].map(|t| t.to_kind(Kind::Double));
                let rstd = (x.square().mean_dims(&[-1], true, Kind::Double) + 1e-6).rsqrt();
                x * rstd * w
            };
            let expected_d_x = numeric_gradient(&x, |x| dot(&output(x, &w), &d_y));
            let expected_d_w = numeric_gradient(&w, |w| dot(&output(&x, w), &d_y));
            assert_close("y", &y, &output(&x, &w), 1e-6);
            assert_close("d_x", &d_x, &expected_d_x, 1e-5);
            assert_close("d_weight", &d_w, &expected_d_w, 1e-5);
        }
    }

    /// The fused kernels against tensor operations, for the kinds that training combines (residual stream, weight,
    /// output): fp32, bf16, and autocast.
    #[test]
    fn fused_kernels_match_tensor_operations() {
        use Kind::{BFloat16, Float};
        for (residual, kept, out) in [
            (Float, Float, Float),
            (BFloat16, BFloat16, BFloat16),
            (Float, Float, BFloat16),
        ] {
            for (tokens, features) in [(1i64, 1i64), (3, 65), (70, 896), (33, 100)] {
                let label = format!("{residual:?} to {out:?}, {tokens} x {features}");
                let tolerance = |kind| if kind == Float { 3e-6 } else { 8e-3 };
                let x = randn(&[tokens, features], 1).to_kind(residual);
                let delta = randn(&[tokens, features], 2).to_kind(residual);
                let weight = (randn(&[features], 3) * 0.2 + 1.0).to_kind(kept);
                let d_y = randn(&[tokens, features], 4).to_kind(out);
                let d_residual = randn(&[tokens, features], 5).to_kind(residual);

                let (y, rstd) = forward(&x, &weight, 1e-6, out);
                let (expected_y, expected_rstd) = aten::forward(&x, &weight, 1e-6, out);
                assert_close(&format!("y, {label}"), &y, &expected_y, tolerance(out));
                assert_close(&format!("rstd, {label}"), &rstd, &expected_rstd, 2e-6);

                let joined = forward_residual(&x, &delta, &weight, 1e-6, out);
                let sum = &x + &delta;
                assert_close(&format!("sum, {label}"), &joined.sum, &sum, 0.0);
                let (expected_y, _) = forward(&sum, &weight, 1e-6, out);
                assert_close(&format!("y of sum, {label}"), &joined.y, &expected_y, 0.0);

                let (d_x, d_w) = backward(&d_y, &x, &weight, &rstd);
                let (expected_d_x, expected_d_w) = aten::backward(&d_y, &x, &weight, &rstd);
                let close = tolerance(residual);
                assert_close(&format!("d_x, {label}"), &d_x, &expected_d_x, close);
                assert_close(&format!("d_weight, {label}"), &d_w, &expected_d_w, 2e-5);

                let (d_sum, d_w) = backward_residual(&d_y, &x, &weight, &rstd, &d_residual);
                let expected = d_residual.to_kind(Float) + expected_d_x.to_kind(Float);
                assert_close(
                    &format!("d_x + residual, {label}"),
                    &d_sum,
                    &expected,
                    2.0 * close,
                );
                assert_close(
                    &format!("d_weight again, {label}"),
                    &d_w,
                    &expected_d_w,
                    2e-5,
                );
            }
        }
    }

    /// q/k norms work on heads inside the fused q|k|v buffer.
    #[test]
    fn strided_rows_are_normalised_like_contiguous_ones() {
        let fused = randn(&[6, 40], 1);
        let heads = fused.narrow(1, 8, 24).view([2, 3, 3, 8]);
        let weight = randn(&[8], 2);
        let (y, rstd) = forward(&heads, &weight, 1e-6, Kind::Float);
        let (expected, _) = aten::forward(&heads.contiguous(), &weight, 1e-6, Kind::Float);
        assert_close("y", &y, &expected, 1e-6);
        assert_eq!(rstd.size(), [2, 3, 3, 1]);
    }
}
