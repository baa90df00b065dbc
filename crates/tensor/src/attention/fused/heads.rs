//! Tensors `[batch, seq, heads, head_dim]` as heads: matrices `[seq, head_dim]` in bf16.

use half::bf16;
use tch::{Device, Kind, Tensor};

use super::rows::StoreRow;
use crate::cpu::kernel;
use crate::matmul::Operand;

/// All heads of a tensor.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    data: *mut bf16,
    batch_stride: usize,
    head_stride: usize,
    row: usize,
    dim: usize,
}

// SAFETY: a pointer to elements that outlive the kernel; whoever writes through it says why nobody else does.
unsafe impl Send for Heads {}
// SAFETY: as above.
unsafe impl Sync for Heads {}

/// One head.
#[derive(Clone, Copy)]
pub(super) struct Head {
    data: *mut bf16,
    row: usize,
    dim: usize,
}

impl Heads {
    /// `None` where the tensor is of another kind or its rows are not plain.
    pub(super) fn of(t: &Tensor) -> Option<Self> {
        let (size, stride) = (t.size(), t.stride());
        let &[_, _, _, dim] = size.as_slice() else {
            return None;
        };
        let fits = t.device() == Device::Cpu && t.kind() == Kind::BFloat16 && stride[3] == 1;
        fits.then(|| Self {
            data: t.data_ptr().cast(),
            batch_stride: stride[0] as usize,
            row: stride[1] as usize,
            head_stride: stride[2] as usize,
            dim: dim as usize,
        })
    }

    pub(super) fn head(&self, batch: usize, head: usize) -> Head {
        let offset = batch * self.batch_stride + head * self.head_stride;
        Head {
            data: self.data.wrapping_add(offset),
            row: self.row,
            dim: self.dim,
        }
    }
}

impl Head {
    /// Its rows are positions from `first` on; sums run over the head's dimensions.
    pub(super) fn positions(&self, first: usize) -> Operand {
        Operand {
            data: self.data.wrapping_add(first * self.row).cast_const(),
            outer: self.row,
            reduced: 1,
        }
    }

    /// Its rows are the head's dimensions; sums run over positions from `first` on.
    pub(super) fn dimensions(&self, first: usize) -> Operand {
        Operand {
            data: self.data.wrapping_add(first * self.row).cast_const(),
            outer: 1,
            reduced: self.row,
        }
    }

    /// # Safety
    /// The position exists, and nobody writes it while the slice lives.
    pub(super) unsafe fn row<'a>(&self, position: usize) -> &'a [bf16] {
        // SAFETY: rows are `dim` elements one after another; the rest is passed on from the caller.
        unsafe { std::slice::from_raw_parts(self.data.wrapping_add(position * self.row), self.dim) }
    }

    /// Writes whole rows of fp32 sums, rounded, to the positions from `first` on; the row `i` is multiplied by `factor(i)`.
    ///
    /// # Safety
    /// The positions exist, and nobody else reads or writes them meanwhile.
    pub(super) unsafe fn store(&self, first: usize, sums: &[f32], factor: impl Fn(usize) -> f32) {
        for (row, sums) in sums.chunks_exact(self.dim).enumerate() {
            let place = self.data.wrapping_add((first + row) * self.row);
            kernel::run(StoreRow {
                // SAFETY: rows are `dim` elements one after another; the rest is passed on from the caller.
                out: unsafe { std::slice::from_raw_parts_mut(place, self.dim) },
                sums,
                factor: factor(row),
            });
        }
    }
}
