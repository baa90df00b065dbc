//! The memory-bound parts of a linear layer's gradients as tensor operations: for any device, kind and layout, and
//! the yardstick of the fused kernels.

use tch::{Kind, Tensor};

use super::Accumulate;

/// As [`super::backward_bias`].
pub fn backward_bias(d_bias: &Tensor, d_y: &Tensor, accumulate: Accumulate) {
    store(
        d_bias,
        &d_y.sum_dim_intlist([0i64].as_slice(), false, Kind::Float),
        accumulate,
    );
}

/// As [`super::store`].
pub fn store(gradient: &Tensor, value: &Tensor, accumulate: Accumulate) {
    let mut target = gradient.shallow_clone();
    match accumulate {
        Accumulate::First => target.copy_(value),
        Accumulate::Add => {
            let _ = target.g_add_(value);
        }
    }
}
