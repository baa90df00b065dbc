//! Gated linear units (Shazeer, arXiv 2002.05202): `activation(gate) * up`, over one fused `[tokens, 2 * features]`
//! projection, in one pass over the rows.

mod activation;

use std::marker::PhantomData;

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;
use crate::lanes::{Lanes, by_lanes};

pub use activation::Activation;
use activation::{Curve, Gelu, GeluTanh, Silu};

/// Calls `$body` with the curve of `$activation` as the type `$curve`, so that loops are compiled for each.
macro_rules! with_curve {
    ($activation:expr, $curve:ident => $body:expr) => {
        match $activation {
            Activation::Silu => {
                type $curve = Silu;
                $body
            }
            Activation::GeluTanh => {
                type $curve = GeluTanh;
                $body
            }
            Activation::Gelu => {
                type $curve = Gelu;
                $body
            }
        }
    };
}

/// Fills `y [tokens, features]` with `activation(gate) * up`. `gate_up` is `[tokens, 2 * features]`, gate first.
///
/// # Panics
/// When a size does not fit.
pub fn forward<T: Element>(activation: Activation, gate_up: &[T], features: usize, y: &mut [T]) {
    check(gate_up, features, [y.len()]);
    let rows = gate_up.chunks_exact(2 * features);
    let rows = rows.zip(y.chunks_exact_mut(features));
    with_curve!(activation, C => dispatch::for_each(rows.map(|(gate_up, y)| {
        let (gate, up) = gate_up.split_at(features);
        ForwardRow::<T, C> {
            gate,
            up,
            y,
            curve: PhantomData,
        }
    })));
}

/// Fills `d_gate_up [tokens, 2 * features]` with the gradient of [`forward`], from `d_y [tokens, features]`.
///
/// # Panics
/// When a size does not fit.
pub fn backward<T: Element>(
    activation: Activation,
    d_y: &[T],
    gate_up: &[T],
    features: usize,
    d_gate_up: &mut [T],
) {
    check(gate_up, features, [d_y.len()]);
    with_curve!(activation, C => gradient::<T, C>(d_y, gate_up, features, &mut [], d_gate_up));
}

/// [`forward`] into `product [tokens, features]` and [`backward`] in one pass.
///
/// # Panics
/// When a size does not fit.
pub fn forward_and_backward<T: Element>(
    activation: Activation,
    d_y: &[T],
    gate_up: &[T],
    features: usize,
    product: &mut [T],
    d_gate_up: &mut [T],
) {
    check(gate_up, features, [d_y.len(), product.len()]);
    with_curve!(activation, C => gradient::<T, C>(d_y, gate_up, features, product, d_gate_up));
}

/// The gradient, and the product where there is room for it.
fn gradient<T: Element, C: Curve>(
    d_y: &[T],
    gate_up: &[T],
    features: usize,
    product: &mut [T],
    d_gate_up: &mut [T],
) {
    assert_eq!(
        d_gate_up.len(),
        gate_up.len(),
        "gate, up and their gradient"
    );
    // Endless empty slices where there is no product.
    let products = product
        .chunks_exact_mut(features)
        .chain(std::iter::repeat_with(Default::default));
    let rows = gate_up
        .chunks_exact(2 * features)
        .zip(d_y.chunks_exact(features))
        .zip(d_gate_up.chunks_exact_mut(2 * features))
        .zip(products);
    dispatch::for_each(rows.map(|(((gate_up, d_y), d_gate_up), product)| {
        let (gate, up) = gate_up.split_at(features);
        let (d_gate, d_up) = d_gate_up.split_at_mut(features);
        BackwardRow::<T, C> {
            d_y,
            gate,
            up,
            d_gate,
            d_up,
            product,
            curve: PhantomData,
        }
    }));
}

fn check<T, const N: usize>(gate_up: &[T], features: usize, lengths: [usize; N]) {
    assert!(
        features > 0 && gate_up.len().is_multiple_of(2 * features),
        "{} elements are not rows of {features} gates and ups",
        gate_up.len()
    );
    assert_eq!(
        lengths,
        [gate_up.len() / 2; N],
        "half as many elements as gates and ups"
    );
}

struct ForwardRow<'a, T, C> {
    gate: &'a [T],
    up: &'a [T],
    y: &'a mut [T],
    curve: PhantomData<C>,
}

impl<T: Element, C: Curve> Kernel for ForwardRow<'_, T, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let Self { gate, up, y, .. } = self;
        by_lanes!(y.len(), [gate, up], [y] => {
            (C::value(Lanes::<I>::load(gate)) * Lanes::load(up)).store(y);
        });
    }
}

struct BackwardRow<'a, T, C> {
    d_y: &'a [T],
    gate: &'a [T],
    up: &'a [T],
    d_gate: &'a mut [T],
    d_up: &'a mut [T],
    /// Empty where the product is not wanted.
    product: &'a mut [T],
    curve: PhantomData<C>,
}

impl<T: Element, C: Curve> Kernel for BackwardRow<'_, T, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let Self {
            d_y,
            gate,
            up,
            d_gate,
            d_up,
            product,
            ..
        } = self;
        if product.is_empty() {
            by_lanes!(d_y.len(), [d_y, gate, up], [d_gate, d_up] => {
                gradient_of::<I, T, C>([d_y, gate, up], [d_gate, d_up]);
            });
        } else {
            by_lanes!(d_y.len(), [d_y, gate, up], [d_gate, d_up, product] => {
                gradient_of::<I, T, C>([d_y, gate, up], [d_gate, d_up]).store(product);
            });
        }
    }
}

/// Stores the gradients of gate and up; returns their product.
#[inline(always)]
fn gradient_of<I: InstructionSet, T: Element, C: Curve>(
    [d_y, gate, up]: [&[T]; 3],
    [d_gate, d_up]: [&mut [T]; 2],
) -> Lanes<I> {
    let (d_y, gate, up) = (Lanes::load(d_y), Lanes::load(gate), Lanes::load(up));
    let (value, slope) = C::value_and_slope(gate);
    (d_y * up * slope).store(d_gate);
    (d_y * value).store(d_up);
    value * up
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{assert_close, bits, numbers, unfilled, wide};

    const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

    /// In fp64: the value, and its slope by a central difference.
    fn exact(activation: Activation, x: f64) -> (f64, f64) {
        let value = |x: f64| match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Gelu => x * normal_distribution(x),
        };
        let step = 1e-5;
        let slope = (value(x + step) - value(x - step)) / (2.0 * step);
        (value(x), slope)
    }

    /// Simpson's rule from far below.
    fn normal_distribution(x: f64) -> f64 {
        let (from, steps) = (-9.0, 2000);
        let width = (x.max(from) - from) / f64::from(steps);
        let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let term = |i: i32| {
            let weight = match i {
                0 => 1.0,
                i if i == steps => 1.0,
                i if i % 2 == 1 => 4.0,
                _ => 2.0,
            };
            weight * density(from + f64::from(i) * width)
        };
        (0..=steps).map(term).sum::<f64>() * width / 3.0
    }

    fn follows_the_formula<T: Element>(activation: Activation, kind: &str, tolerance: f64) {
        for (tokens, features) in [(0, 4), (1, 1), (7, 33), (3, 64), (2, 300)] {
            let label = format!("{activation:?}, {kind}, {tokens} x {features}");
            let gate_up = numbers::<T>(2 * tokens * features, 1, 3.0);
            let d_y = numbers::<T>(tokens * features, 2, 1.0);
            let mut y = unfilled::<T>(tokens * features);
            let mut d_gate_up = unfilled::<T>(gate_up.len());
            forward(activation, &gate_up, features, &mut y);
            backward(activation, &d_y, &gate_up, features, &mut d_gate_up);

            let (wide_gate_up, exact_d) = (wide(&gate_up), wide(&d_y));
            let mut expected = vec![0.0; y.len()];
            let mut expected_d = vec![0.0; gate_up.len()];
            for token in 0..tokens {
                for i in 0..features {
                    let at = 2 * token * features + i;
                    let (gate, up) = (wide_gate_up[at], wide_gate_up[at + features]);
                    let d = exact_d[token * features + i];
                    let (value, slope) = exact(activation, gate);
                    expected[token * features + i] = value * up;
                    expected_d[at] = d * up * slope;
                    expected_d[at + features] = d * value;
                }
            }
            assert_close(&format!("y, {label}"), &y, &expected, tolerance);
            assert_close(&format!("d, {label}"), &d_gate_up, &expected_d, tolerance);

            let mut y_again = unfilled::<T>(y.len());
            let mut d_again = unfilled::<T>(gate_up.len());
            forward_and_backward(
                activation,
                &d_y,
                &gate_up,
                features,
                &mut y_again,
                &mut d_again,
            );
            assert_eq!(bits(&y_again), bits(&y), "y again, {label}");
            assert_eq!(bits(&d_again), bits(&d_gate_up), "d again, {label}");
        }
    }

    #[test]
    fn both_kinds_follow_the_formula() {
        for activation in ALL {
            follows_the_formula::<f32>(activation, "fp32", 2e-6);
            follows_the_formula::<bf16>(activation, "bf16", 4e-3);
        }
    }

    /// Gates so large that `exp(-gate)` is infinite or zero, and that their cubes are infinite.
    #[test]
    fn the_ends_of_the_range_are_finite() {
        for activation in ALL {
            for size in [1e4f32, 1e18] {
                // Beyond a float's digits `1 + x - x` is 0.
                if activation == Activation::Silu && size > 1e4 {
                    continue;
                }
                let gate_up = [-size, size, 2.0, 3.0];
                let (mut y, mut d) = ([f32::NAN; 2], [f32::NAN; 4]);
                forward_and_backward(activation, &[1.0, 1.0], &gate_up, 2, &mut y, &mut d);
                assert_eq!(y, [0.0, 3.0 * size], "{activation:?}");
                assert_eq!(d, [0.0, 3.0, 0.0, size], "{activation:?}");
            }
        }
    }

    #[test]
    fn a_nan_gate_reaches_its_product_alone() {
        for activation in ALL {
            let mut y = [0f32; 2];
            forward(activation, &[f32::NAN, 1.0, 1.0, 1.0], 2, &mut y);
            assert_eq!(y.map(f32::is_nan), [true, false]);
        }
    }

    #[test]
    #[should_panic(expected = "not rows of 2 gates and ups")]
    fn half_a_row_is_noticed() {
        forward(Activation::Silu, &[0f32; 6], 2, &mut [0f32; 3]);
    }
}
