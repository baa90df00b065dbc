//! The squared L2 norm of a flat shard.

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::lanes;

/// Elements that one task sums; fixed, so that the order of the additions never depends on the threads.
const BLOCK: usize = 1 << 14;

/// The sum of the squares, in fp64 from block to block; the same number for any count of threads.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    dispatch::map(values.chunks(BLOCK).map(SumOfSquares))
        .iter()
        .sum()
}

struct SumOfSquares<'a>(&'a [f32]);

impl Kernel for SumOfSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<I: InstructionSet>(self) -> f64 {
        f64::from(lanes::sum::<I, _>(self.0, |x| x * x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    #[test]
    fn sum_of_squares_is_accurate() {
        for n in [0, 1, 17, BLOCK, BLOCK + 1, 100_003] {
            let values = normal(n, 5);
            let expected: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
            let actual = sum_of_squares(&values);
            assert!(
                (actual - expected).abs() <= 1e-6 * expected,
                "{actual} {expected}"
            );
        }
        assert!(sum_of_squares(&[1.0, f32::NAN]).is_nan());
        assert_eq!(sum_of_squares(&[1.0, f32::NEG_INFINITY]), f64::INFINITY);
    }
}
