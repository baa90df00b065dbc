//! A hyperbolic tangent that the compiler can turn into vector code.

use crate::dispatch::InstructionSet;
use crate::exp::exp;
use crate::lanes::Lanes;

/// Below this the polynomial is nearer to the truth, above it the exponential.
const SMALL: f32 = 0.625;

/// `tanh x` in fp32, within 3 units in the last place; NaN stays NaN.
///
/// Near 0 `1 - 2 / (e^2x + 1)` would be a difference of two numbers of equal size, so there it is an odd polynomial (that of
/// Cephes' `tanhf`). Both are computed, because vectors have no branches.
#[inline(always)]
pub(crate) fn tanh<I: InstructionSet>(x: Lanes<I>) -> Lanes<I> {
    let size = x.map(f32::abs);
    let square = x * x;
    let p = square.mul_add(-5.704_988_7e-3, 2.063_909e-2);
    let p = p.mul_add(square, -5.373_971_6e-2);
    let p = p.mul_add(square, 1.333_144_2e-1);
    let p = p.mul_add(square, -3.333_328e-1);
    let near = (p * square).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
    Lanes::each(|lane| {
        if size.get(lane) < SMALL {
            near.get(lane)
        } else {
            far.get(lane).copysign(x.get(lane))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{Kernel, testing::run_on_each_set};
    use crate::lanes::testing::results;

    struct Tangents<'a>(&'a [f32]);

    impl Kernel for Tangents<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<I: InstructionSet>(self) -> Vec<f32> {
            results(self.0, tanh::<I>)
        }
    }

    /// Every 97th number up to where the result is 1, of either sign.
    #[test]
    fn within_three_units_in_the_last_place() {
        let magnitudes = (1e-30f32.to_bits()..=12f32.to_bits()).step_by(97);
        let inputs: Vec<f32> = magnitudes
            .map(f32::from_bits)
            .flat_map(|x| [x, -x])
            .collect();
        for (set, outputs) in run_on_each_set(|| Tangents(&inputs)) {
            let mut worst = (0.0, 0.0);
            for (&x, &y) in inputs.iter().zip(&outputs) {
                let truth = f64::from(x).tanh();
                let size = (truth as f32).abs();
                let unit = f64::from(size.next_up()) - f64::from(size);
                let error = (f64::from(y) - truth).abs() / unit;
                if error > worst.0 {
                    worst = (error, x);
                }
            }
            println!("{set}: {:.3} units at most, at {:e}", worst.0, worst.1);
            assert!(worst.0 <= 3.0, "{set}: {worst:?}");
        }
    }

    #[test]
    fn the_ends_are_one_and_nan_stays() {
        let inputs = [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 0.0, f32::NAN];
        for (set, y) in run_on_each_set(|| Tangents(&inputs)) {
            assert_eq!(y[..5], [1.0, -1.0, 1.0, -1.0, 0.0], "{set}");
            assert!(y[5].is_nan(), "{set}");
        }
    }
}
