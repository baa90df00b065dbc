//! The squared L2 norm of a flat shard.

use tch::{Kind, Tensor};

use crate::cpu::element::{is_plain, slice};
use crate::cpu::kernel::{self, InstructionSet, Kernel};
use crate::cpu::lanes;

/// Elements that one task sums; fixed, so that the order of the additions never depends on the threads.
const BLOCK: usize = 1 << 14;

/// The sum of the squares of a flat fp32 tensor, in fp64; the same number for any count of threads.
pub fn sum_of_squares(t: &Tensor) -> f64 {
    if !is_plain::<f32>(t) {
        return t
            .to_kind(Kind::Float)
            .square()
            .sum(Kind::Double)
            .double_value(&[]);
    }
    let blocks = slice::<f32>(t).chunks(BLOCK).map(SumOfSquares);
    kernel::map(blocks).iter().sum()
}

struct SumOfSquares<'a>(&'a [f32]);

impl Kernel for SumOfSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<I: InstructionSet>(self) -> f64 {
        f64::from(lanes::sum(self.0, |x| x * x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::randn;

    #[test]
    fn sum_of_squares_is_accurate() {
        for n in [0, 1, 17, 100_003] {
            let t = randn(&[n], 5);
            let expected = t
                .to_kind(Kind::Double)
                .square()
                .sum(Kind::Double)
                .double_value(&[]);
            let actual = sum_of_squares(&t);
            assert!(
                (actual - expected).abs() <= 1e-6 * expected,
                "{actual} {expected}"
            );
        }
    }
}
