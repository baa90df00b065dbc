//! RMSNorm as kernels: a row is read from memory once, and all that belongs to it is done while it is in the cache.

use tandem_kernels::rms_norm::{self, Gradients, Norm};
use tandem_torch::{Device, Kind, Tensor};

use super::{Branch, NormSpec, Residual};
use crate::cpu::element::{Stored, is_plain, on_host, slice, slice_mut, with_element};

/// As [`super::forward_residual`], or (with no `delta`, where the sum is `x` itself) as [`super::forward`]; `None`
/// where the kernels do not apply.
pub(super) fn forward(
    x: &Tensor,
    delta: Option<(&Tensor, f64)>,
    weight: &Tensor,
    spec: NormSpec,
    out: Kind,
) -> Option<Residual> {
    with_element!(x.kind(), X => with_element!(out, Y => {
        let x = rows::<X>(x)?;
        let delta = match delta {
            Some((delta, scale)) => Some((same_rows::<X>(delta, &x)?, scale)),
            None => None,
        };
        let factor = host_factor(weight, &x, spec)?;
        let norm = norm(&factor, spec);
        let options = |kind| (kind, Device::Cpu);
        let y = Tensor::empty(x.size(), options(out));
        let rstd = Tensor::empty(one_per_row(&x), options(Kind::Float));
        // SAFETY: `y` and `rstd` were made here.
        let (ys, rstds) = unsafe { (slice_mut::<Y>(&y), slice_mut::<f32>(&rstd)) };
        let xs = slice::<X>(&x);
        let sum = match &delta {
            None => {
                rms_norm::forward(xs, norm, ys, rstds);
                x.shallow_clone()
            }
            Some((delta, scale)) => {
                let sum = Tensor::empty(x.size(), options(X::KIND));
                let out = rms_norm::Residual {
                    // SAFETY: `sum` was made here.
                    sum: unsafe { slice_mut::<X>(&sum) },
                    y: ys,
                    rstd: rstds,
                };
                let delta = slice::<X>(delta);
                rms_norm::forward_residual(xs, delta, *scale as f32, norm, out);
                sum
            }
        };
        Some(Residual { sum, y, rstd })
    }))
}

/// As [`super::forward_branch`]; `None` where the kernels do not apply.
pub(super) fn forward_branch(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    next: Option<&Tensor>,
    spec: NormSpec,
) -> Option<Branch> {
    with_element!(x.kind(), X => with_element!(branch.kind(), Y => {
        let x = rows::<X>(x)?;
        let branch = same_rows::<Y>(branch, &x)?;
        let factor = host_factor(weight, &x, spec)?;
        let next = match next {
            Some(next) => Some(host_factor(next, &x, spec)?),
            None => None,
        };
        let filled = |size: Vec<i64>, kind| Tensor::empty(size, (kind, Device::Cpu));
        let sum = filled(x.size().to_vec(), X::KIND);
        let branch_rstd = filled(one_per_row(&x), Kind::Float);
        let (y, rstd) = match &next {
            Some(_) => (
                filled(x.size().to_vec(), Y::KIND),
                filled(one_per_row(&x), Kind::Float),
            ),
            None => (filled(vec![0], Y::KIND), filled(vec![0], Kind::Float)),
        };
        // SAFETY: all four were made here.
        let out = unsafe {
            rms_norm::Branch {
                sum: slice_mut::<X>(&sum),
                branch_rstd: slice_mut::<f32>(&branch_rstd),
                y: slice_mut::<Y>(&y),
                rstd: slice_mut::<f32>(&rstd),
            }
        };
        let after = next.as_ref().map(|factor| norm(factor, spec));
        let (xs, branches) = (slice::<X>(&x), slice::<Y>(&branch));
        rms_norm::forward_branch(xs, branches, norm(&factor, spec), after, out);
        Some(Branch {
            sum,
            branch_rstd,
            next: next.is_some().then_some((y, rstd)),
        })
    }))
}

/// As [`super::backward`], with `d_residual` (in the kind of `x`) added to `d_x` where it is given; `None` where the
/// kernels do not apply.
pub(super) fn backward(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    spec: NormSpec,
    d_residual: Option<&Tensor>,
) -> Option<(Tensor, Tensor)> {
    with_element!(x.kind(), X => with_element!(d_y.kind(), Y => {
        let x = rows::<X>(x)?;
        let d_y = same_rows::<Y>(d_y, &x)?;
        let d_residual = match d_residual {
            Some(d) => Some(same_rows::<X>(d, &x)?),
            None => None,
        };
        let weight = host_factor(weight, &x, spec)?;
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
    let suits = on_host(x) && x.kind() == X::KIND && x.numel() > 0 && x.dim() > 0;
    suits.then(|| x.contiguous())
}

fn same_rows<X: Stored>(other: &Tensor, x: &Tensor) -> Option<Tensor> {
    let suits = on_host(other) && other.kind() == X::KIND && other.size() == x.size();
    suits.then(|| other.contiguous())
}

fn one_per_row(x: &Tensor) -> Vec<i64> {
    let mut size = x.size().to_vec();
    if let Some(last) = size.last_mut() {
        *last = 1;
    }
    size
}

/// What multiplies the rows of `x`, as fp32: it is short, and every row reads it.
fn host_factor(weight: &Tensor, x: &Tensor, spec: NormSpec) -> Option<Tensor> {
    let suits = on_host(weight) && x.size().ends_with(weight.size());
    (suits && weight.dim() == 1).then(|| spec.factor(weight).contiguous())
}

fn norm(factor: &Tensor, spec: NormSpec) -> Norm<'_> {
    Norm {
        weight: slice::<f32>(factor),
        eps: spec.eps as f32,
        rounds_last: spec.rounds_last,
    }
}
