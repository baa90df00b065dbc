//! RMSNorm as kernels: a row is read from memory once, and all that belongs to it is done while it is in the cache.

use tch::{Device, Kind, Tensor};

use super::Residual;
use crate::cpu::element::{Element, Stored, is_plain, slice, slice_mut, with_element};
use crate::cpu::kernel::{self, InstructionSet, Kernel};
use crate::cpu::lanes;

/// Rows that one task handles; fixed, so that the order in which weight gradients are added is.
const ROWS: usize = 32;

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
        let (x, features) = rows::<X>(x)?;
        let delta = match delta {
            Some(delta) => Some(same_rows::<X>(delta, &x)?),
            None => None,
        };
        let weight = host_f32(weight)?;
        let options = |kind| (kind, Device::Cpu);
        let y = Tensor::empty(x.size(), options(out));
        let rstd = Tensor::empty(one_per_row(&x), options(Kind::Float));
        let sum = match delta {
            Some(_) => Tensor::empty(x.size(), options(X::KIND)),
            None => x.shallow_clone(),
        };
        let block = ROWS * features;
        // SAFETY: `y` and `rstd` were made here.
        let (ys, rstds) = unsafe { (slice_mut::<Y>(&y), slice_mut::<f32>(&rstd)) };
        let outputs = ys.chunks_mut(block).zip(rstds.chunks_mut(ROWS));
        let weight = slice::<f32>(&weight);
        let normalise = |x, (y, rstd)| ForwardRows { x, weight, eps: eps as f32, y, rstd };
        match &delta {
            None => kernel::for_each(
                slice::<X>(&x).chunks(block).zip(outputs).map(|(x, outputs)| normalise(x, outputs)),
            ),
            Some(delta) => {
                // SAFETY: `sum` was made here, and only the kernels use it before they are done.
                let sums = unsafe { slice_mut::<X>(&sum) }.chunks_mut(block);
                let inputs = slice::<X>(&x).chunks(block).zip(slice::<X>(delta).chunks(block));
                kernel::for_each(inputs.zip(sums).zip(outputs).map(
                    |(((x, delta), sum), (y, rstd))| ResidualRows {
                        x,
                        delta,
                        sum,
                        weight,
                        eps: eps as f32,
                        y,
                        rstd,
                    },
                ));
            }
        }
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
        let (x, features) = rows::<X>(x)?;
        let d_y = same_rows::<Y>(d_y, &x)?;
        let d_residual = match d_residual {
            Some(d) => Some(same_rows::<X>(d, &x)?),
            None => None,
        };
        let weight = host_f32(weight)?;
        if !is_plain::<f32>(rstd) {
            return None;
        }
        let d_x = Tensor::empty(x.size(), (X::KIND, Device::Cpu));
        let block = ROWS * features;
        // SAFETY: `d_x` was made here.
        let d_xs = unsafe { slice_mut::<X>(&d_x) }.chunks_mut(block);
        let d_residuals = d_residual.as_ref().map(slice::<X>);
        let inputs = slice::<Y>(&d_y).chunks(block).zip(slice::<X>(&x).chunks(block));
        let inputs = inputs.zip(slice::<f32>(rstd).chunks(ROWS)).zip(d_xs).enumerate();
        let weight = slice::<f32>(&weight);
        let partial = kernel::map(inputs.map(|(index, (((d_y, x), rstd), d_x))| {
            let range = index * block..index * block + x.len();
            BackwardRows { d_y, x, weight, rstd, d_residual: d_residuals.map(|d| &d[range]), d_x }
        }));
        let d_weight = Tensor::zeros([features as i64], (Kind::Float, Device::Cpu));
        // SAFETY: `d_weight` was made here.
        let total = unsafe { slice_mut::<f32>(&d_weight) };
        for partial in &partial {
            for (total, partial) in total.iter_mut().zip(partial) {
                *total += partial;
            }
        }
        Some((d_x, d_weight))
    }))
}

/// `x` with its elements one after another (a copy where they were not), and the length of its rows.
fn rows<X: Stored>(x: &Tensor) -> Option<(Tensor, usize)> {
    let features = *x.size().last()?;
    let suits = x.device() == Device::Cpu && x.kind() == X::KIND && x.numel() > 0;
    suits.then(|| (x.contiguous(), features as usize))
}

fn same_rows<X: Stored>(other: &Tensor, x: &Tensor) -> Option<Tensor> {
    let suits =
        other.device() == Device::Cpu && other.kind() == X::KIND && other.size() == x.size();
    suits.then(|| other.contiguous())
}

fn one_per_row(x: &Tensor) -> Vec<i64> {
    let mut size = x.size();
    if let Some(last) = size.last_mut() {
        *last = 1;
    }
    size
}

/// The weight as fp32: it is short, and every row reads it.
fn host_f32(weight: &Tensor) -> Option<Tensor> {
    (weight.device() == Device::Cpu).then(|| weight.to_kind(Kind::Float).contiguous())
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
