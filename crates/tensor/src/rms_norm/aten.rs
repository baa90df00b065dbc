//! RMSNorm as tensor operations: for any device, kind and layout, and the yardstick of the fused kernels.

use tandem_torch::{Kind, Tensor};

use super::NormSpec;

/// As [`super::forward`]. In one pass where libtorch has an operator for it, which rounds once whatever `spec` says: no number
/// is further from the exact one for it.
pub fn forward(x: &Tensor, weight: &Tensor, spec: NormSpec, out: Kind) -> (Tensor, Tensor) {
    if suits_one_pass(x, weight, spec) && out == x.kind() {
        return x.rms_norm(weight, spec.eps);
    }
    let x32 = x.to_kind(Kind::Float);
    let rstd = (x32.square().mean_dims(&[-1], true, Kind::Float) + spec.eps).rsqrt();
    let y = match spec.rounds_last {
        true => x32 * &rstd * spec.factor(weight),
        false if spec.adds_one => (x32 * &rstd).to_kind(x.kind()) * spec.factor(weight),
        false => (x32 * &rstd).to_kind(x.kind()) * weight,
    };
    (y.to_kind(out), rstd)
}

/// As [`super::backward`].
pub fn backward(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    spec: NormSpec,
) -> (Tensor, Tensor) {
    let features = x.size().last().copied().unwrap_or(0);
    let summed = |products: Tensor| {
        let products = products.view([-1, features]);
        products.sum_dims(&[0], false, Kind::Float)
    };
    if suits_one_pass(x, weight, spec)
        && d_y.kind() == x.kind()
        && let Some(d_x) = x.rms_norm_backward(d_y, weight, rstd)
    {
        // fp32 as `rstd` is, so that neither `x` nor `d_y` is copied for it.
        return (d_x, summed(d_y * (x * rstd)));
    }
    let d_y = d_y.to_kind(Kind::Float);
    let x_hat = x.to_kind(Kind::Float) * rstd;
    let d_weight = summed(&d_y * &x_hat);
    let d_x_hat = d_y * spec.factor(weight);
    let projection = (&d_x_hat * &x_hat).mean_dims(&[-1], true, Kind::Float);
    let d_x = (d_x_hat - x_hat * projection) * rstd;
    (d_x.to_kind(x.kind()), d_weight)
}

/// Whether libtorch's operators for whole norms take these.
fn suits_one_pass(x: &Tensor, weight: &Tensor, spec: NormSpec) -> bool {
    x.kind() == weight.kind() && x.is_contiguous() && x.numel() > 0 && !spec.adds_one
}
