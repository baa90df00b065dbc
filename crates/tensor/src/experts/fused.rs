//! The rows' operations as kernels: one pass each, fp32 inside.

use tandem_kernels::experts;
use tandem_torch::{Device, Kind, Tensor};

use super::Routing;
use crate::cpu::element::{Stored, is_plain, slice, slice_mut, with_element};

/// As [`super::scale`]; `None` where the kernel does not apply.
pub(super) fn scale(x: &Tensor, factors: &Tensor) -> Option<Tensor> {
    with_element!(x.kind(), T => {
        let fits = x.dim() == 2 && factors.dim() == 1 && x.size()[0] == factors.size()[0];
        if !fits || !is_plain::<T>(x) || !is_plain::<f32>(factors) {
            return None;
        }
        let y = x.empty_like();
        // SAFETY: `y` was made here.
        let scaled = unsafe { slice_mut::<T>(&y) };
        experts::scale(slice::<T>(x), slice::<f32>(factors), scaled);
        Some(y)
    })
}

/// As [`super::combine`]; `None` where the kernel does not apply.
pub(super) fn combine(x: &Tensor, plus: Option<&Tensor>, routing: &Routing) -> Option<Tensor> {
    with_element!(x.kind(), T => {
        let tokens = routing.rows.numel() as i64 / routing.top_k();
        let size = [tokens, x.size()[1]];
        let suits = |plus: &Tensor| is_plain::<f32>(plus) && plus.size() == size;
        if !applies::<T>(x, routing) || !plus.is_none_or(suits) {
            return None;
        }
        let y = Tensor::empty(size, (T::KIND, Device::Cpu));
        // SAFETY: `y` was made here.
        let sums = unsafe { slice_mut::<T>(&y) };
        let plus = plus.map_or(&[][..], |plus| slice::<f32>(plus));
        let rows = slice::<i64>(&routing.rows);
        experts::combine(slice::<T>(x), rows, routing.top_k() as usize, plus, sums);
        Some(y)
    })
}

/// As [`super::row_dots`]; `None` where the kernel does not apply.
pub(super) fn row_dots(a: &Tensor, b: &Tensor) -> Option<Tensor> {
    with_element!(a.kind(), T => {
        let plain = is_plain::<T>(a) && is_plain::<T>(b);
        if !plain || a.dim() != 2 || a.size() != b.size() {
            return None;
        }
        let dots = Tensor::empty([a.size()[0]], (Kind::Float, Device::Cpu));
        // SAFETY: the tensor was made here.
        let out = unsafe { slice_mut::<f32>(&dots) };
        experts::row_dots(slice::<T>(a), slice::<T>(b), out);
        Some(dots)
    })
}

/// Whether the kernels can work on these rows.
fn applies<T: Stored>(x: &Tensor, routing: &Routing) -> bool {
    let has_rows = x.dim() == 2 && x.size()[0] == routing.rows.numel() as i64;
    has_rows && is_plain::<T>(x) && is_plain::<i64>(&routing.rows)
}
