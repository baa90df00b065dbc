//! RMSNorm (Zhang and Sennrich, arXiv 1910.07467) with fp32 arithmetic inside, alone or joined with the residual
//! stream's addition before it.

pub mod across;
pub mod aten;
mod fused;

use tandem_torch::{Kind, Tensor};

/// What a norm does besides dividing by the root of the mean square.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square.
    pub eps: f64,
    /// What is stored is the weight less 1 (Gemma).
    pub adds_one: bool,
    /// Rounds once, after the weight is applied (Gemma, OLMo 2), and not before it, too.
    pub rounds_last: bool,
}

impl NormSpec {
    /// As Llama has it: a plain weight, applied to a rounded value.
    pub fn new(eps: f64) -> Self {
        Self {
            eps,
            adds_one: false,
            rounds_last: false,
        }
    }

    /// What multiplies, fp32.
    fn factor(&self, weight: &Tensor) -> Tensor {
        let weight = weight.to_kind(Kind::Float);
        if self.adds_one { weight + 1.0 } else { weight }
    }
}

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
pub fn forward(x: &Tensor, weight: &Tensor, spec: NormSpec, out: Kind) -> (Tensor, Tensor) {
    match fused::forward(x, None, weight, spec, out) {
        Some(Residual { y, rstd, .. }) => (y, rstd),
        None => aten::forward(x, weight, spec, out),
    }
}

/// `x + scale * delta` (rounded to the kind of `x`) and the norm of that sum, in one pass over the rows.
pub fn forward_residual(
    x: &Tensor,
    delta: &Tensor,
    scale: f64,
    weight: &Tensor,
    spec: NormSpec,
    out: Kind,
) -> Residual {
    let delta = delta.to_kind(x.kind());
    fused::forward(x, Some((&delta, scale)), weight, spec, out).unwrap_or_else(|| {
        let delta = if scale == 1.0 { delta } else { delta * scale };
        let sum = x + delta;
        let (y, rstd) = aten::forward(&sum, weight, spec, out);
        Residual { sum, y, rstd }
    })
}

/// What [`forward_branch`] computes.
#[derive(Debug)]
pub struct Branch {
    /// The residual stream after the addition, in its own kind.
    pub sum: Tensor,
    /// Of the branch, fp32 `[.., 1]`, for the backward pass.
    pub branch_rstd: Tensor,
    /// The norm of the sum in the kind of the branch, and its `rstd`, where there is one.
    pub next: Option<(Tensor, Tensor)>,
}

/// `x + norm(branch)`, rounded to the kind of `x`, and the norm of that sum with the weight `next` where that is given, all in
/// one pass over the rows. The norm of the branch is rounded to the branch's kind.
pub fn forward_branch(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    next: Option<&Tensor>,
    spec: NormSpec,
) -> Branch {
    fused::forward_branch(x, branch, weight, next, spec).unwrap_or_else(|| {
        let out = branch.kind();
        let (normed, branch_rstd) = aten::forward(branch, weight, spec, out);
        let sum = x + normed.to_kind(x.kind());
        let next = next.map(|weight| aten::forward(&sum, weight, spec, out));
        Branch {
            sum,
            branch_rstd,
            next,
        }
    })
}

/// Gradients of [`forward`]: `d_x` in the kind of `x`, and `d_weight` as fp32 `[features]`, summed over all
/// leading dimensions.
pub fn backward(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    spec: NormSpec,
) -> (Tensor, Tensor) {
    fused::backward(d_y, x, weight, rstd, spec, None)
        .unwrap_or_else(|| aten::backward(d_y, x, weight, rstd, spec))
}

/// As [`backward`], with `d_residual`, the gradient that reaches `x` past the norm, added to `d_x` in the same pass.
///
/// `d_residual` has the shape of `x`. The sum is rounded once.
pub fn backward_residual(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    spec: NormSpec,
    d_residual: &Tensor,
) -> (Tensor, Tensor) {
    let d_residual = d_residual.to_kind(x.kind());
    fused::backward(d_y, x, weight, rstd, spec, Some(&d_residual)).unwrap_or_else(|| {
        let (d_x, d_weight) = aten::backward(d_y, x, weight, rstd, spec);
        (d_residual + d_x, d_weight)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, dot, numeric_gradient, randn};

    /// As Llama, Gemma and OLMo 2 have them.
    fn specs() -> [NormSpec; 3] {
        let plain = NormSpec::new(1e-6);
        let rounds_last = NormSpec {
            rounds_last: true,
            ..plain
        };
        let gemma = NormSpec {
            adds_one: true,
            ..rounds_last
        };
        [plain, gemma, rounds_last]
    }

    /// In fp64.
    fn exact(x: &Tensor, w: &Tensor, spec: NormSpec) -> Tensor {
        let [x, w] = [x, w].map(|t| t.to_kind(Kind::Double));
        let rstd = (x.square().mean_dims(&[-1], true, Kind::Double) + spec.eps).rsqrt();
        x * rstd * (w + if spec.adds_one { 1.0 } else { 0.0 })
    }

    #[test]
    fn matches_finite_differences() {
        for shape in [vec![5i64, 16], vec![3, 4, 8], vec![0, 8]] {
            for spec in specs() {
                let features = *shape.last().unwrap();
                let x = randn(&shape, 1);
                let w = randn(&[features], 2);
                let d_y = randn(&shape, 3);
                let (y, rstd) = forward(&x, &w, spec, Kind::Float);
                let (d_x, d_w) = backward(&d_y, &x, &w, &rstd, spec);

                let expected_d_x = numeric_gradient(&x, |x| dot(&exact(x, &w, spec), &d_y));
                let expected_d_w = numeric_gradient(&w, |w| dot(&exact(&x, w, spec), &d_y));
                assert_close("y", &y, &exact(&x, &w, spec), 1e-6);
                assert_close("d_x", &d_x, &expected_d_x, 1e-5);
                assert_close("d_weight", &d_w, &expected_d_w, 1e-5);
            }
        }
    }

    /// A norm on a branch, and the one that follows its sum.
    #[test]
    fn a_branchs_norm_is_added() {
        let (x, branch) = (randn(&[9, 24], 1), randn(&[9, 24], 2));
        let (weight, next) = (randn(&[24], 3), randn(&[24], 4));
        for spec in specs() {
            for next in [None, Some(&next)] {
                let found = forward_branch(&x, &branch, &weight, next, spec);
                let sum = &x + exact(&branch, &weight, spec).to_kind(Kind::Float);
                assert_close("sum", &found.sum, &sum, 1e-6);
                let (_, rstd) = forward(&branch, &weight, spec, Kind::Float);
                assert_close("rstd", &found.branch_rstd, &rstd, 0.0);
                let Some((next, (y, rstd))) = next.zip(found.next) else {
                    continue;
                };
                let (expected_y, expected_rstd) = forward(&found.sum, next, spec, Kind::Float);
                assert_close("y of the sum", &y, &expected_y, 0.0);
                assert_close("rstd of the sum", &rstd, &expected_rstd, 0.0);
            }
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
            let sizes = [(1i64, 1i64), (3, 65), (70, 896), (33, 100)];
            for ((tokens, features), spec) in sizes
                .into_iter()
                .flat_map(|size| specs().map(|spec| (size, spec)))
            {
                let label = format!("{residual:?} to {out:?}, {tokens} x {features}, {spec:?}");
                let tolerance = |kind| if kind == Float { 3e-6 } else { 8e-3 };
                let x = randn(&[tokens, features], 1).to_kind(residual);
                let delta = randn(&[tokens, features], 2).to_kind(residual);
                let weight = (randn(&[features], 3) * 0.2 + 1.0).to_kind(kept);
                let d_y = randn(&[tokens, features], 4).to_kind(out);
                let d_residual = randn(&[tokens, features], 5).to_kind(residual);

                let (y, rstd) = forward(&x, &weight, spec, out);
                let (expected_y, expected_rstd) = aten::forward(&x, &weight, spec, out);
                assert_close(&format!("y, {label}"), &y, &expected_y, tolerance(out));
                assert_close(&format!("rstd, {label}"), &rstd, &expected_rstd, 2e-6);

                let joined = forward_residual(&x, &delta, 1.0, &weight, spec, out);
                let sum = &x + &delta;
                assert_close(&format!("sum, {label}"), &joined.sum, &sum, 0.0);
                let (expected_y, _) = forward(&sum, &weight, spec, out);
                assert_close(&format!("y of sum, {label}"), &joined.y, &expected_y, 0.0);

                let (d_x, d_w) = backward(&d_y, &x, &weight, &rstd, spec);
                let (expected_d_x, expected_d_w) = aten::backward(&d_y, &x, &weight, &rstd, spec);
                let close = tolerance(residual);
                assert_close(&format!("d_x, {label}"), &d_x, &expected_d_x, close);
                assert_close(&format!("d_weight, {label}"), &d_w, &expected_d_w, 2e-5);

                let (d_sum, d_w) = backward_residual(&d_y, &x, &weight, &rstd, spec, &d_residual);
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

                let scaled = forward_residual(&x, &delta, 0.3, &weight, spec, out);
                let sum = x.to_kind(Float) + delta.to_kind(Float) * 0.3;
                assert_close(&format!("scaled sum, {label}"), &scaled.sum, &sum, close);
                let branch = delta.to_kind(out);
                let joined = forward_branch(&x, &branch, &weight, Some(&weight), spec);
                let (normed, _) = aten::forward(&branch, &weight, spec, out);
                let sum = &x + normed.to_kind(residual);
                let close = 2.0 * tolerance(out);
                assert_close(&format!("branch, {label}"), &joined.sum, &sum, close);
            }
        }
    }

    /// q/k norms work on heads inside the fused q|k|v buffer.
    #[test]
    fn strided_rows_are_normalised_like_contiguous_ones() {
        let fused = randn(&[6, 40], 1);
        let heads = fused.narrow(1, 8, 24).view([2, 3, 3, 8]);
        let weight = randn(&[8], 2);
        let spec = NormSpec::new(1e-6);
        let (y, rstd) = forward(&heads, &weight, spec, Kind::Float);
        let (expected, _) = aten::forward(&heads.contiguous(), &weight, spec, Kind::Float);
        assert_close("y", &y, &expected, 1e-6);
        assert_eq!(rstd.size(), [2, 3, 3, 1]);
    }
}
