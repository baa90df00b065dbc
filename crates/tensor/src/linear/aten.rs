//! The memory-bound parts of a linear layer's gradients as tensor operations: for any device, kind and layout, and
//! the yardstick of the fused kernels.

use tandem_torch::{Kind, Tensor};

use tandem_kernels::Accumulate;

/// As [`super::backward_bias`].
pub fn backward_bias(d_bias: &Tensor, d_y: &Tensor, accumulate: Accumulate) {
    store(d_bias, &d_y.sum_dims(&[0], false, Kind::Float), accumulate);
}

/// As [`super::store`].
pub fn store(gradient: &Tensor, value: &Tensor, accumulate: Accumulate) {
    match accumulate {
        Accumulate::First => gradient.copy_(value),
        Accumulate::Add => gradient.add_(value),
    }
}
