//! SwiGLU as kernels: one pass over the rows, fp32 inside.

use tch::{Device, Tensor};

use crate::cpu::element::{Element, Stored, is_plain, slice, slice_mut, with_element};
use crate::cpu::exp::exp;
use crate::cpu::kernel::{self, InstructionSet, Kernel};

/// As [`super::forward`]; `None` where the kernel does not apply.
pub(super) fn forward(gate_up: &Tensor) -> Option<Tensor> {
    with_element!(gate_up.kind(), T => {
        let features = features::<T>(gate_up)?;
        let y = Tensor::empty([gate_up.size()[0], features as i64], (T::KIND, Device::Cpu));
        // SAFETY: `y` was made here.
        let ys = unsafe { slice_mut::<T>(&y) }.chunks_exact_mut(features);
        let rows = slice::<T>(gate_up).chunks_exact(2 * features).zip(ys);
        kernel::for_each(rows.map(|(gate_up, y)| {
            let (gate, up) = gate_up.split_at(features);
            ForwardRow { gate, up, y }
        }));
        Some(y)
    })
}

/// As [`super::backward`]; `None` where the kernel does not apply.
pub(super) fn backward(d_y: &Tensor, gate_up: &Tensor) -> Option<Tensor> {
    gradient(d_y, gate_up, false).map(|(_, d_gate_up)| d_gate_up)
}

/// As [`super::forward_and_backward`]; `None` where the kernel does not apply.
pub(super) fn forward_and_backward(d_y: &Tensor, gate_up: &Tensor) -> Option<(Tensor, Tensor)> {
    gradient(d_y, gate_up, true)
}

/// The product (empty unless asked for) and the gradient.
fn gradient(d_y: &Tensor, gate_up: &Tensor, with_product: bool) -> Option<(Tensor, Tensor)> {
    with_element!(gate_up.kind(), T => {
        let features = features::<T>(gate_up)?;
        if !is_plain::<T>(d_y) || d_y.size() != [gate_up.size()[0], features as i64] {
            return None;
        }
        let d_gate_up = gate_up.empty_like();
        let product = if with_product {
            d_y.empty_like()
        } else {
            Tensor::empty([0], (T::KIND, Device::Cpu))
        };
        // SAFETY: both tensors were made here.
        let (d_gate_ups, products) =
            unsafe { (slice_mut::<T>(&d_gate_up), slice_mut::<T>(&product)) };
        // Endless empty slices where there is no product.
        let products = products
            .chunks_exact_mut(features)
            .chain(std::iter::repeat_with(Default::default));
        let rows = slice::<T>(gate_up)
            .chunks_exact(2 * features)
            .zip(slice::<T>(d_y).chunks_exact(features))
            .zip(d_gate_ups.chunks_exact_mut(2 * features))
            .zip(products);
        kernel::for_each(rows.map(|(((gate_up, d_y), d_gate_up), product)| {
            let (gate, up) = gate_up.split_at(features);
            let (d_gate, d_up) = d_gate_up.split_at_mut(features);
            BackwardRow { d_y, gate, up, d_gate, d_up, product }
        }));
        Some((product, d_gate_up))
    })
}

/// Half the width of `gate_up`, where the kernels can work on it.
fn features<T: Stored>(gate_up: &Tensor) -> Option<usize> {
    let width = *gate_up.size().get(1)?;
    (is_plain::<T>(gate_up) && width >= 2 && width % 2 == 0).then_some(width as usize / 2)
}

/// `1 / (1 + e^-x)`; 0 and 1 at the ends.
#[inline(always)]
fn sigmoid<I: InstructionSet>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<I>(-x))
}

struct ForwardRow<'a, T> {
    gate: &'a [T],
    up: &'a [T],
    y: &'a mut [T],
}

impl<T: Element> Kernel for ForwardRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        for ((y, gate), up) in self.y.iter_mut().zip(self.gate).zip(self.up) {
            let gate = gate.widen();
            *y = T::round(gate * sigmoid::<I>(gate) * up.widen());
        }
    }
}

struct BackwardRow<'a, T> {
    d_y: &'a [T],
    gate: &'a [T],
    up: &'a [T],
    d_gate: &'a mut [T],
    d_up: &'a mut [T],
    /// Empty where the product is not wanted.
    product: &'a mut [T],
}

impl<T: Element> Kernel for BackwardRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let inputs = self.d_y.iter().zip(self.gate).zip(self.up);
        let rows = inputs.zip(self.d_gate).zip(self.d_up);
        if self.product.is_empty() {
            for ((((d_y, gate), up), d_gate), d_up) in rows {
                (*d_gate, *d_up, _) = gradient_of::<I, T>(*d_y, *gate, *up);
            }
        } else {
            for (((((d_y, gate), up), d_gate), d_up), product) in rows.zip(self.product) {
                (*d_gate, *d_up, *product) = gradient_of::<I, T>(*d_y, *gate, *up);
            }
        }
    }
}

/// The gradients of gate and up, and their product.
#[inline(always)]
fn gradient_of<I: InstructionSet, T: Element>(d_y: T, gate: T, up: T) -> (T, T, T) {
    let (d_y, gate, up) = (d_y.widen(), gate.widen(), up.widen());
    let sigmoid = sigmoid::<I>(gate);
    let silu = gate * sigmoid;
    let d_gate = d_y * up * (sigmoid * (1.0 + gate - silu));
    (T::round(d_gate), T::round(d_y * silu), T::round(silu * up))
}
