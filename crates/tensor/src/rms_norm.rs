//! RMSNorm (Zhang and Sennrich, arXiv 1910.07467) with fp32 arithmetic inside.

use tch::{Kind, Tensor};

/// `y = weight * x * rstd`, with `rstd = 1 / sqrt(mean(x^2) + eps)` over the last dimension.
///
/// `x` is `[.., features]`, `weight` is `[features]`. Returns `y` in kind `out` and `rstd` as fp32 `[.., 1]`,
/// which [`backward`] needs.
///
/// As Hugging Face does, the normalised value is rounded to the kind of `x` before the weight is applied.
pub fn forward(x: &Tensor, weight: &Tensor, eps: f64, out: Kind) -> (Tensor, Tensor) {
    let x32 = x.to_kind(Kind::Float);
    let rstd = (x32.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + eps).rsqrt();
    let y = (x32 * &rstd).to_kind(x.kind()) * weight;
    (y.to_kind(out), rstd)
}

/// Gradients of [`forward`]: `d_x` in the kind of `x`, and `d_weight` as fp32 `[features]`, summed over all
/// leading dimensions.
pub fn backward(d_y: &Tensor, x: &Tensor, weight: &Tensor, rstd: &Tensor) -> (Tensor, Tensor) {
    let features = x.size().last().copied().unwrap_or(0);
    let d_y = d_y.to_kind(Kind::Float);
    let x_hat = x.to_kind(Kind::Float) * rstd;
    let d_weight =
        (&d_y * &x_hat)
            .view([-1, features])
            .sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
    let d_x_hat = d_y * weight.to_kind(Kind::Float);
    let projection = (&d_x_hat * &x_hat).mean_dim([-1i64].as_slice(), true, Kind::Float);
    let d_x = (d_x_hat - x_hat * projection) * rstd;
    (d_x.to_kind(x.kind()), d_weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, randn};

    #[test]
    fn matches_autograd() {
        for shape in [vec![5i64, 16], vec![3, 4, 8], vec![0, 8]] {
            let features = *shape.last().unwrap();
            let x = randn(&shape, 1);
            let w = randn(&[features], 2);
            let d_y = randn(&shape, 3);
            let (y, rstd) = forward(&x, &w, 1e-6, Kind::Float);
            let (d_x, d_w) = backward(&d_y, &x, &w, &rstd);

            let (xa, wa) = (
                x.copy().set_requires_grad(true),
                w.copy().set_requires_grad(true),
            );
            let rs = (xa.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + 1e-6).rsqrt();
            let ya = &xa * rs * &wa;
            (&ya * &d_y).sum(Kind::Float).backward();
            assert_close("y", &y, &ya.detach(), 1e-6);
            assert_close("d_x", &d_x, &xa.grad(), 1e-5);
            assert_close("d_weight", &d_w, &wa.grad(), 1e-5);
        }
    }
}
