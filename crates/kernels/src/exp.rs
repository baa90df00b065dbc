//! An exponential that the compiler can turn into vector code.

use crate::dispatch::InstructionSet;
use crate::lanes::Lanes;

/// `e^x` in fp32, within 2 units in the last place of the true value where that is a normal number. Smaller results
/// are 0, larger ones infinite; NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2` (`ln 2` in two parts, after Cody and Waite), a polynomial for `e^r`, and `n`
/// added to the exponent bits.
#[inline(always)]
pub(crate) fn exp<I: InstructionSet>(x: Lanes<I>) -> Lanes<I> {
    // Adding and subtracting 1.5 * 2^23 rounds to an integer, which then also sits in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // Few enough bits that `n` times it is exact even without a fused multiply-add.
    const LN2_HIGH: f32 = 0.691_406_25;
    const LN2_LOW: f32 = 1.740_930_6e-3;

    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let slope = second_order(r).mul_add(r, 1.0);
    let power = slope.mul_add(r, 1.0);
    Lanes::each(|lane| {
        let (x, power, shifted) = (x.get(lane), power.get(lane), shifted.get(lane));
        let scaled = f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23));
        let flushed = if x < SMALLEST { 0.0 } else { scaled };
        // The sum is infinite where x is too large, and NaN where x is.
        if x <= LARGEST {
            flushed
        } else {
            x + f32::INFINITY
        }
    })
}

/// [`exp`] of one number.
#[inline(always)]
pub(crate) fn exp_of_one<I: InstructionSet>(x: f32) -> f32 {
    exp(Lanes::<I>::from(x)).get(0)
}

/// The logarithm of the smallest normal number, rounded up.
const SMALLEST: f32 = -87.336_54;
/// The logarithm of the largest finite number, rounded down.
const LARGEST: f32 = 88.722_83;

/// `(e^r - 1 - r) / r^2`, with the coefficients that minimise the largest relative error of the resulting `e^r` on
/// `|r| <= ln 2 / 2` (3.1e-9; found by Remez's exchange algorithm).
#[inline(always)]
fn second_order<I: InstructionSet>(r: Lanes<I>) -> Lanes<I> {
    let p = r.mul_add(1.381_459_9e-3, 8.368_717e-3);
    let p = p.mul_add(r, 4.166_839e-2);
    let p = p.mul_add(r, 1.666_652_1e-1);
    p.mul_add(r, 0.499_999_94)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{Kernel, testing::run_on_each_set};
    use crate::lanes::testing::results;

    struct Exponentials<'a>(&'a [f32]);

    impl Kernel for Exponentials<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<I: InstructionSet>(self) -> Vec<f32> {
            results(self.0, exp::<I>)
        }
    }

    /// Every 97th number between the bounds, of either sign.
    #[test]
    fn within_two_units_in_the_last_place() {
        let magnitudes = (0..=LARGEST.to_bits()).step_by(97).map(f32::from_bits);
        let inputs: Vec<f32> = magnitudes
            .flat_map(|x| [x, -x])
            .filter(|&x| (SMALLEST..=LARGEST).contains(&x))
            .collect();
        for (set, outputs) in run_on_each_set(|| Exponentials(&inputs)) {
            let mut worst = (0.0, 0.0);
            for (&x, &y) in inputs.iter().zip(&outputs) {
                let truth = f64::from(x).exp();
                let unit = f64::from((truth as f32).next_up()) - f64::from(truth as f32);
                let unit = if unit.is_finite() {
                    unit
                } else {
                    2f64.powi(104)
                };
                let error = (f64::from(y) - truth).abs() / unit;
                if error > worst.0 {
                    worst = (error, x);
                }
            }
            println!(
                "{set}: {} numbers, {:.3} units at most, at {:e}",
                inputs.len(),
                worst.0,
                worst.1
            );
            assert!(worst.0 <= 2.0, "{set}: {worst:?}");
        }
    }

    #[test]
    fn the_ends_are_zero_infinity_and_nan() {
        let inputs = [
            f32::NEG_INFINITY,
            -1e30,
            -104.0,
            -87.4,
            0.0,
            -0.0,
            88.73,
            1e30,
            f32::INFINITY,
            f32::NAN,
        ];
        for (set, y) in run_on_each_set(|| Exponentials(&inputs)) {
            assert_eq!(y[..4], [0.0; 4], "{set}");
            assert_eq!(y[4..6], [1.0; 2], "{set}");
            assert_eq!(y[6..9], [f32::INFINITY; 3], "{set}");
            assert!(y[9].is_nan(), "{set}");
        }
    }
}
