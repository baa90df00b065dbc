//! Gated linear units as kernels: one pass over the rows, fp32 inside.

use tandem_kernels::glu::{self, Activation};
use tandem_torch::{Device, Tensor};

use crate::cpu::element::{Stored, is_plain, slice, slice_mut, with_element};

/// As [`super::forward`]; `None` where the kernel does not apply.
pub(super) fn forward(activation: Activation, gate_up: &Tensor) -> Option<Tensor> {
    with_element!(gate_up.kind(), T => {
        let features = features::<T>(gate_up)?;
        let y = Tensor::empty([gate_up.size()[0], features as i64], (T::KIND, Device::Cpu));
        // SAFETY: `y` was made here.
        let ys = unsafe { slice_mut::<T>(&y) };
        glu::forward(activation, slice::<T>(gate_up), features, ys);
        Some(y)
    })
}

/// As [`super::backward`]; `None` where the kernel does not apply.
pub(super) fn backward(activation: Activation, d_y: &Tensor, gate_up: &Tensor) -> Option<Tensor> {
    with_element!(gate_up.kind(), T => {
        let features = gradient_features::<T>(d_y, gate_up)?;
        let d_gate_up = gate_up.empty_like();
        // SAFETY: the tensor was made here.
        let gradient = unsafe { slice_mut::<T>(&d_gate_up) };
        let (d_y, gate_up) = (slice::<T>(d_y), slice::<T>(gate_up));
        glu::backward(activation, d_y, gate_up, features, gradient);
        Some(d_gate_up)
    })
}

/// As [`super::forward_and_backward`]; `None` where the kernel does not apply.
pub(super) fn forward_and_backward(
    activation: Activation,
    d_y: &Tensor,
    gate_up: &Tensor,
) -> Option<(Tensor, Tensor)> {
    with_element!(gate_up.kind(), T => {
        let features = gradient_features::<T>(d_y, gate_up)?;
        let (product, d_gate_up) = (d_y.empty_like(), gate_up.empty_like());
        // SAFETY: both tensors were made here.
        let (products, gradient) =
            unsafe { (slice_mut::<T>(&product), slice_mut::<T>(&d_gate_up)) };
        let (d_y, gate_up) = (slice::<T>(d_y), slice::<T>(gate_up));
        glu::forward_and_backward(activation, d_y, gate_up, features, products, gradient);
        Some((product, d_gate_up))
    })
}

/// Half the width of `gate_up`, where the kernels can work on it.
fn features<T: Stored>(gate_up: &Tensor) -> Option<usize> {
    let width = *gate_up.size().get(1)?;
    let suits = is_plain::<T>(gate_up) && gate_up.dim() == 2 && width >= 2 && width % 2 == 0;
    suits.then_some(width as usize / 2)
}

/// The same where they can also work on `d_y`.
fn gradient_features<T: Stored>(d_y: &Tensor, gate_up: &Tensor) -> Option<usize> {
    let features = features::<T>(gate_up)?;
    let suits = is_plain::<T>(d_y) && d_y.size() == [gate_up.size()[0], features as i64];
    suits.then_some(features)
}
