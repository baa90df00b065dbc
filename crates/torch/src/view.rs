//! Views: other sizes and strides over the same elements. Sizes, strides and offsets are computed and checked here; libtorch
//! is only told them.

use crate::create::contiguous_strides;
use crate::dispatch::Arg;
use crate::error::expect;
use crate::kind::Kind;
use crate::library::{device_operator, torch};
use crate::operators::{FLATTEN, VIEW};
use crate::tensor::{Shape, Tensor, new_tensor};

impl Tensor {
    /// A view; `offset` counts elements from this tensor's first.
    ///
    /// # Panics
    /// When an element would lie outside of what this tensor's sizes and strides span.
    #[track_caller]
    fn restride(&self, size: &[i64], stride: &[i64], offset: i64) -> Self {
        assert_eq!(size.len(), stride.len());
        debug_assert!(
            offset >= 0
                && (size.contains(&0)
                    || self.numel() == 0
                    || offset + span(size, stride) <= span(self.size(), self.stride())),
            "{size:?} with strides {stride:?} from {offset} on leaves {self:?}"
        );
        expect(self.view_by("a view", |whole, out| {
            // SAFETY: both lists have as many numbers as the view has dimensions, and it stays within this tensor.
            unsafe {
                (torch().functions.aoti_torch__reinterpret_tensor)(
                    whole,
                    size.len() as i64,
                    size.as_ptr(),
                    stride.as_ptr(),
                    offset,
                    out,
                )
            }
        }))
    }

    /// `length` indices of dimension `dim`, from `start` on.
    ///
    /// # Panics
    /// When they are not there.
    #[track_caller]
    pub fn narrow(&self, dim: i64, start: i64, length: i64) -> Self {
        let axis = self.axis(dim);
        let mut size = self.size().to_vec();
        assert!(
            start >= 0 && length >= 0 && start <= size[axis] && length <= size[axis] - start,
            "narrow({dim}, {start}, {length}) of {self:?}"
        );
        size[axis] = length;
        self.restride(&size, self.stride(), start * self.stride()[axis])
    }

    /// One index of dimension `dim`, which goes.
    ///
    /// # Panics
    /// When it is not there.
    #[track_caller]
    pub fn select(&self, dim: i64, index: i64) -> Self {
        let axis = self.axis(dim);
        let (mut size, mut stride) = (self.size().to_vec(), self.stride().to_vec());
        let index = if index < 0 { index + size[axis] } else { index };
        assert!(
            (0..size[axis]).contains(&index),
            "select({dim}, {index}) of {self:?}"
        );
        let offset = index * stride[axis];
        size.remove(axis);
        stride.remove(axis);
        self.restride(&size, &stride, offset)
    }

    /// [`Self::select`] in the first dimension.
    #[track_caller]
    pub fn get(&self, index: i64) -> Self {
        self.select(0, index)
    }

    /// Two dimensions swapped.
    #[track_caller]
    pub fn transpose(&self, a: i64, b: i64) -> Self {
        let (a, b) = (self.axis(a), self.axis(b));
        let (mut size, mut stride) = (self.size().to_vec(), self.stride().to_vec());
        size.swap(a, b);
        stride.swap(a, b);
        self.restride(&size, &stride, 0)
    }

    /// A matrix transposed.
    #[track_caller]
    pub fn tr(&self) -> Self {
        assert_eq!(self.dim(), 2, "{self:?} is no matrix");
        self.transpose(0, 1)
    }

    /// A dimension of size 1 more, before dimension `dim`; -1 puts it last.
    #[track_caller]
    pub fn unsqueeze(&self, dim: i64) -> Self {
        let dims = self.dim() as i64 + 1;
        assert!((-dims..dims).contains(&dim), "unsqueeze({dim}) of {self:?}");
        let axis = (if dim < 0 { dim + dims } else { dim }) as usize;
        let (mut size, mut stride) = (self.size().to_vec(), self.stride().to_vec());
        let step = size.get(axis).map_or(1, |size| size * stride[axis]);
        size.insert(axis, 1);
        stride.insert(axis, step);
        self.restride(&size, &stride, 0)
    }

    /// Without dimension `dim`, where its size is 1.
    #[track_caller]
    pub fn squeeze_dim(&self, dim: i64) -> Self {
        match self.size()[self.axis(dim)] {
            1 => self.select(dim, 0),
            _ => self.shallow_clone(),
        }
    }

    /// The same elements in the same order with other sizes, of which one may be -1: what is left.
    ///
    /// # Panics
    /// When the number of elements differs, or when the strides do not allow it.
    #[track_caller]
    pub fn view(&self, shape: impl Shape) -> Self {
        let size = self.fitted(shape.sizes());
        if self.is_contiguous() {
            self.restride(&size, &contiguous_strides(&size)[..size.len()], 0)
        } else {
            expect(VIEW.call(&[Arg::Tensor(self), Arg::Ints(&size)]))
        }
    }

    /// As [`Self::view`]; a copy where the strides do not allow a view.
    #[track_caller]
    pub fn reshape(&self, shape: impl Shape) -> Self {
        let size = self.fitted(shape.sizes());
        if self.is_contiguous() {
            return self.view(&size);
        }
        let reshape = device_operator!(self, reshape);
        expect(new_tensor("reshape", |out| {
            // SAFETY: the list has the length that is given with it.
            unsafe { reshape(self.handle(), size.as_ptr(), size.len() as i64, out) }
        }))
    }

    /// The sizes with -1 replaced by what is left.
    #[track_caller]
    fn fitted(&self, sizes: &[i64]) -> Vec<i64> {
        let mut size = sizes.to_vec();
        let numel = self.numel() as i64;
        if let Some(open) = size.iter().position(|&size| size == -1) {
            size[open] = 1;
            let rest: i64 = size.iter().product();
            size[open] = if rest == 0 { 0 } else { numel / rest };
        }
        assert_eq!(
            size.iter().product::<i64>(),
            numel,
            "{self:?} has no view of sizes {sizes:?}"
        );
        size
    }

    /// Dimensions `start..=end` as one; a copy where the strides do not allow a view.
    #[track_caller]
    pub fn flatten(&self, start: i64, end: i64) -> Self {
        expect(FLATTEN.call(&[Arg::Tensor(self), Arg::Int(start), Arg::Int(end)]))
    }

    /// The same bytes as another kind; the last dimension grows or shrinks with the width.
    #[track_caller]
    pub fn view_dtype(&self, kind: Kind) -> Self {
        let code = torch().codes.of_kind(kind);
        let view = device_operator!(self, view_dtype);
        expect(self.view_by("view_dtype", |whole, out| {
            // SAFETY: the handle is alive.
            unsafe { view(whole, code, out) }
        }))
    }
}

/// Elements from the first to the last, both included; none of the sizes is 0.
fn span(size: &[i64], stride: &[i64]) -> i64 {
    let last: i64 = size
        .iter()
        .zip(stride)
        .map(|(size, stride)| (size - 1) * stride)
        .sum();
    last + 1
}
