//! The memory-bound parts of a linear layer's gradients as kernels.

use tandem_kernels::linear;
use tandem_torch::Tensor;

use crate::cpu::element::{is_plain, slice, slice_mut, with_element};
use tandem_kernels::Accumulate;

/// As [`super::store`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn store(gradient: &Tensor, value: &Tensor, accumulate: Accumulate) -> Option<()> {
    with_element!(value.kind(), T => {
        if !is_plain::<f32>(gradient) || !is_plain::<T>(value) || gradient.size() != value.size() {
            return None;
        }
        // SAFETY: a gradient buffer is never the source of what is stored in it.
        let gradient = unsafe { slice_mut::<f32>(gradient) };
        linear::store(gradient, slice::<T>(value), accumulate);
        Some(())
    })
}

/// As [`super::backward_bias`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn backward_bias(d_bias: &Tensor, d_y: &Tensor, accumulate: Accumulate) -> Option<()> {
    with_element!(d_y.kind(), T => {
        let columns = *d_y.size().get(1)?;
        let suits = is_plain::<f32>(d_bias) && is_plain::<T>(d_y) && d_bias.size() == [columns];
        if !suits || d_y.numel() == 0 {
            return None;
        }
        // SAFETY: the gradient of a bias is a buffer of its own, not a part of `d_y`.
        let d_bias = unsafe { slice_mut::<f32>(d_bias) };
        linear::backward_bias(d_bias, slice::<T>(d_y), accumulate);
        Some(())
    })
}
