//! The squared L2 norm of a flat shard.

use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::cpu;

/// Elements that one task sums; fixed, so that the order of the additions never depends on the threads.
const BLOCK: usize = 1 << 14;

/// The sum of the squares of a flat fp32 tensor, in fp64; the same number for any count of threads.
pub fn sum_of_squares(t: &Tensor) -> f64 {
    if !cpu::is_plain_f32(t) {
        return t
            .to_kind(Kind::Float)
            .square()
            .sum(Kind::Double)
            .double_value(&[]);
    }
    cpu::with_f32(t, |values| {
        let blocks: Vec<f64> = values.par_chunks(BLOCK).map(block_sum_of_squares).collect();
        blocks.iter().sum()
    })
}

/// Sixteen partial sums, so that the compiler can use vectors without changing the order.
fn block_sum_of_squares(block: &[f32]) -> f64 {
    let mut lanes = [0f32; 16];
    let chunks = block.chunks_exact(16);
    let rest: f64 = chunks
        .remainder()
        .iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + rest
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
