//! RMSNorm as kernels: a row is read from memory once, and all that belongs to it is done while it is in the cache.

use tandem_kernels::rms_norm::{self, Gradients};
use tandem_torch::{Device, Kind, Tensor};

use super::Residual;
use crate::cpu::element::{Stored, is_plain, slice, slice_mut, with_element};

/// As [`super::forward_residual`], or (with no `delta`, where the sum is `x` itself) as [`super::forward`]; `None`
/// where the kernels do not apply.
pub(super) fn forward(
    x: &Tensor,
    delta: Option<&Tensor>,
    weight: &Tensor,
    eps: f64,
    out: Kind,
) -> Option<Residual> {
    with_element!(x.kind(), X => with_element!(out, Y => {
        let x = rows::<X>(x)?;
        let delta = match delta {
            Some(delta) => Some(same_rows::<X>(delta, &x)?),
            None => None,
        };
        let weight = host_f32(weight, &x)?;
        let weight = slice::<f32>(&weight);
        let options = |kind| (kind, Device::Cpu);
        let y = Tensor::empty(x.size(), options(out));
        let rstd = Tensor::empty(one_per_row(&x), options(Kind::Float));
        // SAFETY: `y` and `rstd` were made here.
        let (ys, rstds) = unsafe { (slice_mut::<Y>(&y), slice_mut::<f32>(&rstd)) };
        let (xs, eps) = (slice::<X>(&x), eps as f32);
        let sum = match &delta {
            None => {
                rms_norm::forward(xs, weight, eps, ys, rstds);
                x.shallow_clone()
            }
            Some(delta) => {
                let sum = Tensor::empty(x.size(), options(X::KIND));
                let out = rms_norm::Residual {
                    // SAFETY: `sum` was made here.
                    sum: unsafe { slice_mut::<X>(&sum) },
                    y: ys,
                    rstd: rstds,
                };
                rms_norm::forward_residual(xs, slice::<X>(delta), weight, eps, out);
                sum
            }
        };
        Some(Residual { sum, y, rstd })
    }))
}

/// As [`super::backward`], with `d_residual` (in the kind of `x`) added to `d_x` where it is given; `None` where the
/// kernels do not apply.
pub(super) fn backward(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    d_residual: Option<&Tensor>,
) -> Option<(Tensor, Tensor)> {
    with_element!(x.kind(), X => with_element!(d_y.kind(), Y => {
        let x = rows::<X>(x)?;
        let d_y = same_rows::<Y>(d_y, &x)?;
        let d_residual = match d_residual {
            Some(d) => Some(same_rows::<X>(d, &x)?),
            None => None,
        };
        let weight = host_f32(weight, &x)?;
        if !is_plain::<f32>(rstd) || rstd.numel() * weight.numel() != x.numel() {
            return None;
        }
        let d_x = Tensor::empty(x.size(), (X::KIND, Device::Cpu));
        let d_weight = Tensor::empty(weight.size(), (Kind::Float, Device::Cpu));
        // SAFETY: both were made here.
        let gradients = unsafe {
            Gradients {
                d_x: slice_mut::<X>(&d_x),
                d_weight: slice_mut::<f32>(&d_weight),
            }
        };
        rms_norm::backward(
            slice::<Y>(&d_y),
            slice::<X>(&x),
            slice::<f32>(&weight),
            slice::<f32>(rstd),
            d_residual.as_ref().map(slice::<X>),
            gradients,
        );
        Some((d_x, d_weight))
    }))
}

/// `x` with its elements one after another: a copy where they were not.
fn rows<X: Stored>(x: &Tensor) -> Option<Tensor> {
    let suits = x.device() == Device::Cpu && x.kind() == X::KIND && x.numel() > 0 && x.dim() > 0;
    suits.then(|| x.contiguous())
}

fn same_rows<X: Stored>(other: &Tensor, x: &Tensor) -> Option<Tensor> {
    let suits =
        other.device() == Device::Cpu && other.kind() == X::KIND && other.size() == x.size();
    suits.then(|| other.contiguous())
}

fn one_per_row(x: &Tensor) -> Vec<i64> {
    let mut size = x.size().to_vec();
    if let Some(last) = size.last_mut() {
        *last = 1;
    }
    size
}

/// The weight of the rows of `x`, as fp32: it is short, and every row reads it.
fn host_f32(weight: &Tensor, x: &Tensor) -> Option<Tensor> {
    let suits = weight.device() == Device::Cpu && x.size().ends_with(weight.size());
    (suits && weight.dim() == 1).then(|| weight.to_kind(Kind::Float).contiguous())
}
