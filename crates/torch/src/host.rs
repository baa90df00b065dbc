//! Numbers from the host into tensors, and back.

use half::{bf16, f16};

use crate::device::Device;
use crate::kind::Kind;
use crate::recorder::{self, Action};
use crate::tensor::Tensor;

/// A type of numbers on the host that tensors can be filled from and read into.
///
/// # Safety
/// The type is as wide as an element of [`Self::KIND`], and every bit pattern is a value of it.
pub unsafe trait HostElement: Copy + Send + Sync + 'static {
    /// What libtorch calls it.
    const KIND: Kind;
    /// Zero.
    const ZERO: Self;
}

macro_rules! host_elements {
    ($($element:ty: $kind:ident, $zero:expr;)*) => {$(
        // SAFETY: libtorch's kind of this name has this representation.
        unsafe impl HostElement for $element {
            const KIND: Kind = Kind::$kind;
            const ZERO: Self = $zero;
        }
    )*};
}

host_elements! {
    u8: Uint8, 0;
    i32: Int, 0;
    i64: Int64, 0;
    f16: Half, f16::ZERO;
    bf16: BFloat16, bf16::ZERO;
    f32: Float, 0.0;
    f64: Double, 0.0;
}

impl Tensor {
    /// A tensor of one dimension, on the CPU, with a copy of `values`.
    #[track_caller]
    pub fn from_slice<T: HostElement>(values: &[T]) -> Self {
        let tensor = Self::empty([values.len() as i64], (T::KIND, Device::Cpu));
        // SAFETY: the tensor was made here, with room for as many elements of this width.
        unsafe {
            let target = tensor.data_ptr().cast();
            std::ptr::copy_nonoverlapping(values.as_ptr(), target, values.len());
        }
        tensor
    }

    /// Copies the first `numel` elements, row by row, to `target`.
    ///
    /// # Panics
    /// When the tensor is not on the CPU or of another kind, or when it or `target` has fewer elements.
    #[track_caller]
    pub fn copy_data<T: HostElement>(&self, target: &mut [T], numel: usize) {
        assert!(
            T::KIND == self.kind() && self.device() == Device::Cpu,
            "{self:?} has no elements of {:?} on the host",
            T::KIND
        );
        assert!(
            numel <= self.numel() && numel <= target.len(),
            "{numel} elements are not in {self:?}, or too many for {}",
            target.len()
        );
        let begun = recorder::begin(Some(self));
        recorder::end(begun, "a read", Action::HostReads, &[self], &[]);
        let plain = self.contiguous();
        // SAFETY: the elements are there, one after another, of this width, and `target` has room for them.
        unsafe {
            let source = plain.data_ptr().cast_const().cast();
            std::ptr::copy_nonoverlapping(source, target.as_mut_ptr(), numel);
        }
    }

    /// All elements, row by row, in the kind of `T` whatever this tensor's is, from any device.
    #[track_caller]
    pub fn to_vec<T: HostElement>(&self) -> Vec<T> {
        let host = self.to_device(Device::Cpu).to_kind(T::KIND);
        let mut values = vec![T::ZERO; host.numel()];
        host.copy_data(&mut values, host.numel());
        values
    }

    /// Whether kinds, sizes and all bits of the elements are the same. CUDA: the host waits for them.
    #[track_caller]
    pub fn equal(&self, other: &Self) -> bool {
        let bits = |tensor: &Self| {
            let flat = tensor.to_device(Device::Cpu).contiguous().view([-1]);
            flat.view_dtype(Kind::Uint8).to_vec::<u8>()
        };
        self.kind() == other.kind() && self.size() == other.size() && bits(self) == bits(other)
    }

    /// The only element, as fp64. CUDA: the host waits for it.
    ///
    /// # Panics
    /// When there is not exactly one.
    #[track_caller]
    pub fn double_value(&self) -> f64 {
        self.only()
    }

    /// The only element, as an integer. CUDA: the host waits for it.
    ///
    /// # Panics
    /// When there is not exactly one.
    #[track_caller]
    pub fn int64_value(&self) -> i64 {
        self.only()
    }

    #[track_caller]
    fn only<T: HostElement>(&self) -> T {
        assert_eq!(self.numel(), 1, "{self:?} is not one number");
        self.to_vec::<T>()[0]
    }
}
