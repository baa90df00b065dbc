//! The kinds of numbers that kernels read and write in place, and tensors as slices of them.

use half::bf16;
use tch::{Device, Kind, Tensor};

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

/// A floating point kind that kernels widen to fp32, compute in, and round back from.
pub(crate) trait Element: Stored {
    /// Exact.
    fn widen(self) -> f32;
    /// To nearest even, as libtorch rounds.
    fn round(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }
}

// The conversions of `half` look the processor up at run time or branch on NaN; these compile to vector code.
impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        let bits = value.to_bits();
        // The carry of a NaN's payload could reach the sign: a NaN becomes the quiet one instead.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let rounded = if value.is_nan() { 0x7fc0 } else { rounded };
        Self::from_bits(rounded as u16)
    }
}

/// True when the elements of `t` are `T`s, one after another in host memory.
pub(crate) fn is_plain<T: Stored>(t: &Tensor) -> bool {
    t.device() == Device::Cpu && t.kind() == T::KIND && t.is_contiguous()
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

/// Runs `body` with `T` standing for the Rust type of a floating point kind; `None` for a kind without kernels.
macro_rules! with_element {
    ($kind:expr, $T:ident => $body:expr) => {
        match $kind {
            tch::Kind::Float => {
                type $T = f32;
                $body
            }
            tch::Kind::BFloat16 => {
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
    fn bf16_rounds_and_widens_as_libtorch_does() {
        let values: Vec<f32> = (0..1u32 << 20)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
            .chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1.0, 3.4e38])
            .filter(|v| !v.is_nan())
            .collect();
        let expected = Tensor::from_slice(&values).to_kind(Kind::BFloat16);
        for (value, expected) in values.iter().zip(slice::<bf16>(&expected)) {
            let rounded = bf16::round(*value);
            assert_eq!(rounded.to_bits(), expected.to_bits(), "{value:e}");
            assert_eq!(rounded.widen(), expected.to_f32());
        }
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff)] {
            assert!(bf16::round(nan).is_nan());
        }
    }
}
