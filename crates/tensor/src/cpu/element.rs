//! The kinds of numbers that kernels read and write in place, and tensors as slices of them.

use std::cell::Cell;

use half::bf16;
pub(crate) use tandem_kernels::Element;
use tandem_torch::{Device, Kind, Tensor};

/// A number as libtorch stores it: every bit pattern is valid, and it is as wide as an element of [`Self::KIND`].
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    /// What libtorch calls it.
    const KIND: Kind;
}

impl Stored for f32 {
    const KIND: Kind = Kind::Float;
}

impl Stored for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

impl Stored for i64 {
    const KIND: Kind = Kind::Int64;
}

thread_local! {
    /// Whether this thread's operations may take our kernels.
    static KERNELS: Cell<bool> = const { Cell::new(true) };
}

/// Runs `body` on this thread with libtorch's operators alone, also where our kernels for the CPU would do: these are the
/// operators that run on a GPU, to be counted or compared where there is none.
pub fn without_kernels<R>(body: impl FnOnce() -> R) -> R {
    /// Puts back what was before, also where `body` panics.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            KERNELS.set(self.0);
        }
    }
    let _before = Before(KERNELS.replace(false));
    body()
}

/// Whether our kernels may work on `t`, as far as where it lies is concerned.
pub(crate) fn on_host(t: &Tensor) -> bool {
    t.device() == Device::Cpu && KERNELS.get()
}

/// True when the elements of `t` are `T`s, one after another in host memory, and our kernels may work on them.
pub(crate) fn is_plain<T: Stored>(t: &Tensor) -> bool {
    on_host(t) && t.kind() == T::KIND && t.is_contiguous()
}

/// The elements of `t`.
///
/// # Panics
/// When `t` is not [`is_plain`].
pub(crate) fn slice<T: Stored>(t: &Tensor) -> &[T] {
    assert!(is_plain::<T>(t));
    if t.numel() == 0 {
        return &[];
    }
    // SAFETY: the tensor is contiguous, in host memory and of `T`'s kind, so its `numel` elements start at `data_ptr`,
    // aligned; the borrow of `t` keeps the storage alive. Kernels never write a storage that they also read through here.
    unsafe { std::slice::from_raw_parts(t.data_ptr() as *const T, t.numel()) }
}

/// The elements of `t`, to be written.
///
/// # Safety
/// While the slice lives, nothing else may read or write these elements: no other slice of this storage, and no
/// operation on a tensor that shares it.
///
/// # Panics
/// When `t` is not [`is_plain`].
#[expect(
    clippy::mut_from_ref,
    reason = "a tensor is a handle: its elements are not borrowed with it, so the caller vouches for them"
)]
pub(crate) unsafe fn slice_mut<T: Stored>(t: &Tensor) -> &mut [T] {
    assert!(is_plain::<T>(t));
    if t.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `slice`, and the caller promises that the access is exclusive.
    unsafe { std::slice::from_raw_parts_mut(t.data_ptr() as *mut T, t.numel()) }
}

/// The elements of `t` and what lies between them, from its first to its last, for kernels that work on views.
///
/// # Panics
/// When the elements of `t` are not `T`s in host memory.
#[cfg(target_arch = "x86_64")]
pub(crate) fn span<T: Stored>(t: &Tensor) -> &[T] {
    match span_len::<T>(t) {
        0 => &[],
        // SAFETY: libtorch keeps all elements of a tensor, which lie at sums of multiples of its strides, within its storage,
        // and so what is between them; the rest is as in `slice`.
        len => unsafe { std::slice::from_raw_parts(t.data_ptr() as *const T, len) },
    }
}

/// As [`span`], to be written.
///
/// # Safety
/// As [`slice_mut`], also for what lies between the elements.
///
/// # Panics
/// When the elements of `t` are not `T`s in host memory.
#[expect(clippy::mut_from_ref, reason = "as in `slice_mut`")]
pub(crate) unsafe fn span_mut<T: Stored>(t: &Tensor) -> &mut [T] {
    match span_len::<T>(t) {
        0 => &mut [],
        // SAFETY: as in `span`, and the caller promises that the access is exclusive.
        len => unsafe { std::slice::from_raw_parts_mut(t.data_ptr() as *mut T, len) },
    }
}

fn span_len<T: Stored>(t: &Tensor) -> usize {
    assert_eq!((t.device(), t.kind()), (Device::Cpu, T::KIND));
    if t.numel() == 0 {
        return 0;
    }
    let dimensions = t.size().iter().zip(t.stride());
    let last: i64 = dimensions.map(|(size, stride)| (size - 1) * stride).sum();
    last as usize + 1
}

/// Runs `body` with `T` standing for the Rust type of a floating point kind; `None` for a kind without kernels.
macro_rules! with_element {
    ($kind:expr, $T:ident => $body:expr) => {
        match $kind {
            tandem_torch::Kind::Float => {
                type $T = f32;
                $body
            }
            tandem_torch::Kind::BFloat16 => {
                type $T = half::bf16;
                $body
            }
            _ => None,
        }
    };
}
pub(crate) use with_element;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reaches_from_the_first_to_the_last_element() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let whole = Tensor::from_slice(&values).view([4, 6]);
        let part = whole.narrow(0, 1, 2).narrow(1, 2, 3);
        // SAFETY: nothing else uses the tensor.
        let span = unsafe { span_mut::<f32>(&part) };
        assert_eq!(span, &values[8..17]);
        let (turned, none) = (part.tr(), part.narrow(0, 0, 0));
        // SAFETY: as above; the slice before is not used any more.
        let span = unsafe { span_mut::<f32>(&turned) };
        assert_eq!(span, &values[8..17]);
        // SAFETY: there are no elements.
        let span = unsafe { span_mut::<f32>(&none) };
        assert!(span.is_empty());
    }

    #[test]
    fn bf16_rounds_and_widens_as_libtorch_does() {
        let values: Vec<f32> = (0..1u32 << 20)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
            .chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1.0, 3.4e38])
            .filter(|v| !v.is_nan())
            .collect();
        let expected = Tensor::from_slice(&values).to_kind(Kind::BFloat16);
        for (value, expected) in values.iter().zip(slice::<bf16>(&expected)) {
            let rounded = <bf16 as Element>::round(*value);
            assert_eq!(rounded.to_bits(), expected.to_bits(), "{value:e}");
            assert_eq!(rounded.widen(), expected.to_f32());
        }
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff)] {
            assert!(<bf16 as Element>::round(nan).is_nan());
        }
    }
}
