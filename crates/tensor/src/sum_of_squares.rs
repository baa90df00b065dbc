//! The squared L2 norm of a flat shard.

use tandem_kernels::sum_of_squares as kernel;
use tandem_torch::{Kind, Tensor};

use crate::cpu::element::{is_plain, slice};

/// The sum of the squares of a flat fp32 tensor, in fp64; the same number for any count of threads.
pub fn sum_of_squares(t: &Tensor) -> f64 {
    if !is_plain::<f32>(t) {
        return t
            .to_kind(Kind::Float)
            .square()
            .sum(Kind::Double)
            .double_value();
    }
    kernel::sum_of_squares(slice::<f32>(t))
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
                .double_value();
            let actual = sum_of_squares(&t);
            assert!(
                (actual - expected).abs() <= 1e-6 * expected,
                "{actual} {expected}"
            );
        }
    }
}
