//! SwiGLU (Shazeer, arXiv 2002.05202): `silu(gate) * up`, over one fused `[tokens, 2 * features]` projection, in one pass over
//! the rows.

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;
use crate::exp::exp;

/// Fills `y [tokens, features]` with `silu(gate) * up`. `gate_up` is `[tokens, 2 * features]`, gate first.
///
/// # Panics
/// When a size does not fit.
pub fn forward<T: Element>(gate_up: &[T], features: usize, y: &mut [T]) {
    check(gate_up, features, [y.len()]);
    let rows = gate_up.chunks_exact(2 * features);
    let rows = rows.zip(y.chunks_exact_mut(features));
    dispatch::for_each(rows.map(|(gate_up, y)| {
        let (gate, up) = gate_up.split_at(features);
        ForwardRow { gate, up, y }
    }));
}

/// Fills `d_gate_up [tokens, 2 * features]` with the gradient of [`forward`], from `d_y [tokens, features]`.
///
/// # Panics
/// When a size does not fit.
pub fn backward<T: Element>(d_y: &[T], gate_up: &[T], features: usize, d_gate_up: &mut [T]) {
    check(gate_up, features, [d_y.len()]);
    gradient(d_y, gate_up, features, &mut [], d_gate_up);
}

/// [`forward`] into `product [tokens, features]` and [`backward`] in one pass.
///
/// # Panics
/// When a size does not fit.
pub fn forward_and_backward<T: Element>(
    d_y: &[T],
    gate_up: &[T],
    features: usize,
    product: &mut [T],
    d_gate_up: &mut [T],
) {
    check(gate_up, features, [d_y.len(), product.len()]);
    gradient(d_y, gate_up, features, product, d_gate_up);
}

/// The gradient, and the product where there is room for it.
fn gradient<T: Element>(
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
        BackwardRow {
            d_y,
            gate,
            up,
            d_gate,
            d_up,
            product,
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

/// `1 / (1 + e^-x)`; 0 and 1 at the ends.
#[inline(always)]
fn sigmoid<I: InstructionSet>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<I>(-x))
}

struct ForwardRow<'a, T> {
    gate: &'a [T],
    up: &'a [T],
    y: &'a mut [T],
}

impl<T: Element> Kernel for ForwardRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        for ((y, gate), up) in self.y.iter_mut().zip(self.gate).zip(self.up) {
            let gate = gate.widen();
            *y = T::round(gate * sigmoid::<I>(gate) * up.widen());
        }
    }
}

struct BackwardRow<'a, T> {
    d_y: &'a [T],
    gate: &'a [T],
    up: &'a [T],
    d_gate: &'a mut [T],
    d_up: &'a mut [T],
    /// Empty where the product is not wanted.
    product: &'a mut [T],
}

impl<T: Element> Kernel for BackwardRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let inputs = self.d_y.iter().zip(self.gate).zip(self.up);
        let rows = inputs.zip(self.d_gate).zip(self.d_up);
        if self.product.is_empty() {
            for ((((d_y, gate), up), d_gate), d_up) in rows {
                (*d_gate, *d_up, _) = gradient_of::<I, T>(*d_y, *gate, *up);
            }
        } else {
            for (((((d_y, gate), up), d_gate), d_up), product) in rows.zip(self.product) {
                (*d_gate, *d_up, *product) = gradient_of::<I, T>(*d_y, *gate, *up);
            }
        }
    }
}

/// The gradients of gate and up, and their product.
#[inline(always)]
fn gradient_of<I: InstructionSet, T: Element>(d_y: T, gate: T, up: T) -> (T, T, T) {
    let (d_y, gate, up) = (d_y.widen(), gate.widen(), up.widen());
    let sigmoid = sigmoid::<I>(gate);
    let silu = gate * sigmoid;
    let d_gate = d_y * up * (sigmoid * (1.0 + gate - silu));
    (T::round(d_gate), T::round(d_y * silu), T::round(silu * up))
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{assert_close, bits, numbers, unfilled, wide};

    fn follows_the_formula<T: Element>(kind: &str, tolerance: f64) {
        for (tokens, features) in [(0, 4), (1, 1), (7, 33), (3, 64), (5, 2432)] {
            let label = format!("{kind}, {tokens} x {features}");
            let gate_up = numbers::<T>(2 * tokens * features, 1, 3.0);
            let d_y = numbers::<T>(tokens * features, 2, 1.0);
            let mut y = unfilled::<T>(tokens * features);
            let mut d_gate_up = unfilled::<T>(gate_up.len());
            forward(&gate_up, features, &mut y);
            backward(&d_y, &gate_up, features, &mut d_gate_up);

            let (exact, exact_d) = (wide(&gate_up), wide(&d_y));
            let mut expected = vec![0.0; y.len()];
            let mut expected_d = vec![0.0; gate_up.len()];
            for token in 0..tokens {
                for i in 0..features {
                    let at = 2 * token * features + i;
                    let (gate, up) = (exact[at], exact[at + features]);
                    let d = exact_d[token * features + i];
                    let sigmoid = 1.0 / (1.0 + (-gate).exp());
                    expected[token * features + i] = gate * sigmoid * up;
                    expected_d[at] = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
                    expected_d[at + features] = d * gate * sigmoid;
                }
            }
            assert_close(&format!("y, {label}"), &y, &expected, tolerance);
            assert_close(&format!("d, {label}"), &d_gate_up, &expected_d, tolerance);

            let mut y_again = unfilled::<T>(y.len());
            let mut d_again = unfilled::<T>(gate_up.len());
            forward_and_backward(&d_y, &gate_up, features, &mut y_again, &mut d_again);
            assert_eq!(bits(&y_again), bits(&y), "y again, {label}");
            assert_eq!(bits(&d_again), bits(&d_gate_up), "d again, {label}");
        }
    }

    #[test]
    fn both_kinds_follow_the_formula() {
        follows_the_formula::<f32>("fp32", 2e-6);
        follows_the_formula::<bf16>("bf16", 4e-3);
    }

    /// Gates so large that `exp(-gate)` is infinite or zero.
    #[test]
    fn the_ends_of_the_range_are_finite() {
        let gate_up = [-1e4f32, 1e4, 2.0, 3.0];
        let (mut y, mut d) = ([f32::NAN; 2], [f32::NAN; 4]);
        forward_and_backward(&[1.0, 1.0], &gate_up, 2, &mut y, &mut d);
        assert_eq!(y, [0.0, 3e4]);
        assert_eq!(d, [0.0, 3.0, 0.0, 1e4]);
    }

    #[test]
    fn a_nan_gate_reaches_its_product_alone() {
        let mut y = [0f32; 2];
        forward(&[f32::NAN, 1.0, 1.0, 1.0], 2, &mut y);
        assert_eq!(y.map(f32::is_nan), [true, false]);
    }

    #[test]
    #[should_panic(expected = "not rows of 2 gates and ups")]
    fn half_a_row_is_noticed() {
        forward(&[0f32; 6], 2, &mut [0f32; 3]);
    }
}
