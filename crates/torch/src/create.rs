//! New tensors: empty, filled, converted, copied.

use std::panic::Location;

use crate::device::Device;
use crate::error::expect;
use crate::kind::Kind;
use crate::library::torch;
use crate::pretend;
use crate::recorder::Action;
use crate::scalar::Scalar;
use crate::tensor::{Shape, Tensor, called, new_tensor};

/// Dimensions of the widest tensor that is made.
const MOST_DIMENSIONS: usize = 8;

/// What makes elements of a tensor follow each other without gaps.
pub(crate) fn contiguous_strides(size: &[i64]) -> [i64; MOST_DIMENSIONS] {
    assert!(
        size.len() <= MOST_DIMENSIONS,
        "{} dimensions are more than {MOST_DIMENSIONS}",
        size.len()
    );
    let mut strides = [1; MOST_DIMENSIONS];
    for i in (1..size.len()).rev() {
        strides[i - 1] = strides[i] * size[i].max(1);
    }
    strides
}

impl Tensor {
    /// A contiguous tensor with unspecified elements.
    ///
    /// # Panics
    /// When there is not enough memory.
    #[track_caller]
    pub fn empty(shape: impl Shape, options: (Kind, Device)) -> Self {
        let ((kind, device), size) = (options, shape.sizes());
        let codes = &torch().codes;
        let strides = contiguous_strides(size);
        let pretends = device.is_cuda() && pretend::is_on();
        let (device, index) = device.code(codes);
        let (dims, kind) = (size.len() as i64, codes.of_kind(kind));
        let tensor = expect(new_tensor("empty", |out| {
            // SAFETY: both lists have as many numbers as there are dimensions.
            unsafe {
                (torch().functions.aoti_torch_empty_strided)(
                    dims,
                    size.as_ptr(),
                    strides.as_ptr(),
                    kind,
                    device,
                    index,
                    out,
                )
            }
        }));
        tensor.on(pretends)
    }

    /// A contiguous tensor of the same size, kind and device, with unspecified elements.
    #[track_caller]
    pub fn empty_like(&self) -> Self {
        Self::empty(self.size(), (self.kind(), self.device()))
    }

    /// As [`Self::empty_like`], with zeros.
    #[track_caller]
    pub fn zeros_like(&self) -> Self {
        Self::zeros(self.size(), (self.kind(), self.device()))
    }

    /// Zeros.
    #[track_caller]
    pub fn zeros(shape: impl Shape, options: (Kind, Device)) -> Self {
        let tensor = Self::empty(shape, options);
        tensor.zero_();
        tensor
    }

    /// Ones.
    #[track_caller]
    pub fn ones(shape: impl Shape, options: (Kind, Device)) -> Self {
        Self::full(shape, 1.0, options)
    }

    /// `value`, everywhere.
    #[track_caller]
    pub fn full(shape: impl Shape, value: impl Into<Scalar>, options: (Kind, Device)) -> Self {
        let tensor = Self::empty(shape, options);
        tensor.fill_(value);
        tensor
    }

    /// Overwrites all elements with 0.
    #[track_caller]
    pub fn zero_(&self) {
        // SAFETY: the handle is alive.
        let code = unsafe { (torch().functions.aoti_torch_zero_)(self.handle()) };
        expect(self.overwritten(code, "zero_"));
    }

    /// Overwrites all elements with `value`.
    #[track_caller]
    pub fn fill_(&self, value: impl Into<Scalar>) {
        let value = value.into().as_f64();
        // SAFETY: the handle is alive.
        let code =
            unsafe { (torch().functions.aoti_torch_aten_fill__Scalar)(self.handle(), value) };
        expect(self.overwritten(code, "fill_"));
    }

    /// Overwrites the elements with those of `source`, whose kind and device may be others. CUDA: the host does not wait, and
    /// a copy to the host waits for the device. A copy from the host is done with `source` when this returns, since its memory is
    /// not pinned: the driver takes the numbers along.
    ///
    /// # Panics
    /// When the sizes of `source` do not fit.
    #[track_caller]
    pub fn copy_(&self, source: &Self) {
        // Told nothing, libtorch waits until the device has come to the copy.
        let is_upload = self.device().is_cuda() && source.device() == Device::Cpu;
        // SAFETY: both handles are alive.
        let code = unsafe {
            (torch().functions.aoti_torch_copy_)(self.handle(), source.handle(), is_upload.into())
        };
        let line = Location::caller();
        expect(called(code, "copy_", self.over(), || {
            match (source.device().is_cuda(), self.device().is_cuda()) {
                (true, false) => Action::ToHost(line),
                (false, true) => Action::ToDevice,
                _ => Action::Compute,
            }
        }));
    }

    /// A copy with memory of its own.
    #[track_caller]
    pub fn copy(&self) -> Self {
        let copy = self.empty_like();
        copy.copy_(self);
        copy
    }

    /// The same numbers in another kind; this tensor itself where it has that kind. What is dense keeps its layout (a
    /// transposed matrix stays one), so products of the result cost what they cost before.
    #[track_caller]
    pub fn to_kind(&self, kind: Kind) -> Self {
        if kind == self.kind() {
            return self.shallow_clone();
        }
        let options = (kind, self.device());
        if !self.is_contiguous()
            && let &[rows, columns] = self.size()
            && *self.stride() == [1, rows]
        {
            let transposed = Self::empty([columns, rows], options).tr();
            transposed.copy_(self);
            return transposed;
        }
        let converted = Self::empty(self.size(), options);
        converted.copy_(self);
        converted
    }

    /// The same numbers on another device; this tensor itself where it is there. A copy from CUDA to the host is complete when
    /// this returns.
    #[track_caller]
    pub fn to_device(&self, device: Device) -> Self {
        if device == self.device() {
            return self.shallow_clone();
        }
        let there = Self::empty(self.size(), (self.kind(), device));
        there.copy_(self);
        there
    }

    /// The same numbers one after another; this tensor itself where they are.
    #[track_caller]
    pub fn contiguous(&self) -> Self {
        if self.is_contiguous() {
            self.shallow_clone()
        } else {
            self.copy()
        }
    }
}
