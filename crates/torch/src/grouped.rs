//! Products of groups of rows, each group with a matrix of its own, in one operator that reads on the device where groups end
//! (`torch._grouped_mm`; its rules are in PyTorch's `GroupedMMUtils.h`, `GroupedBlas.cpp` and `GroupMMCommon.cuh`).
//!
//! It takes bf16 only, rows and columns of which each begins at a multiple of 16 bytes, and fewer than 1024 groups. It has a kernel
//! for devices of compute capability 9 and 10. For any other, and for the CPU, libtorch copies the ends to the host and calls one
//! product for each group, which is no reason to call it.

use std::sync::OnceLock;

use crate::cuda;
use crate::device::Device;
use crate::dispatch::Arg;
use crate::error::{TorchError, expect};
use crate::kind::Kind;
use crate::library::torch;
use crate::operators::GROUPED_MM;
use crate::pretend;
use crate::recorder;
use crate::tensor::Tensor;

/// Widths of rows are multiples of this many elements, so that each row begins at a multiple of [`ALIGN_BYTES`].
const ALIGN: i64 = 8;

/// What the device's copies from global memory need (TMA).
const ALIGN_BYTES: usize = 16;

/// The kernel has one thread for each group.
const MOST_GROUPS: i64 = 1023;

/// Whether products by groups run on `device` without the host: false on the CPU, on GPUs without a kernel for it, and where libtorch
/// has no such operator, or another one.
pub fn has_grouped_products(device: Device) -> bool {
    /// Whether the operator is called as this libtorch has it. Tried once.
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    /// Whether every device that this process sees has the kernel. They do not change.
    static HAVE_KERNEL: OnceLock<bool> = OnceLock::new();
    let have_kernel = || {
        let count = cuda::device_count(torch()).unwrap_or(0);
        (0..count).all(|device| matches!(cuda::major(device), Some(9 | 10)))
    };
    device.is_cuda()
        && *IS_THERE.get_or_init(is_there)
        && (pretend::is_on() || *HAVE_KERNEL.get_or_init(have_kernel))
}

/// Nothing is computed: there are no rows.
fn is_there() -> bool {
    recorder::unrecorded(|| {
        let half = |size: &[i64]| Tensor::zeros(size, (Kind::BFloat16, Device::Cpu));
        let ends = Tensor::zeros([1], (Kind::Int, Device::Cpu));
        call(&half(&[0, ALIGN]), &half(&[1, ALIGN, ALIGN]), &ends).is_ok()
    })
}

fn call(a: &Tensor, b: &Tensor, ends: &Tensor) -> Result<Tensor, TorchError> {
    GROUPED_MM.call(&[
        Arg::Tensor(a),
        Arg::Tensor(b),
        Arg::SomeTensor(ends),
        // A bias, which is not supported; and the kind of the result, which is that of the operands.
        Arg::None,
        Arg::None,
    ])
}

impl Tensor {
    /// Whether products by groups can have these `[groups, rows, columns]` as operands, as they are or transposed, and of which each
    /// group gets one as a result; in bf16, which others are converted to first.
    pub fn suits_groups(&self) -> bool {
        let &[groups, rows, columns] = self.size() else {
            return false;
        };
        // A conversion is to new memory.
        let is_converted = self.kind() != Kind::BFloat16;
        let is_aligned = is_converted || self.data_ptr().addr().is_multiple_of(ALIGN_BYTES);
        let are_wide = rows % ALIGN == 0 && columns % ALIGN == 0;
        groups <= MOST_GROUPS && are_wide && is_aligned && self.is_contiguous()
    }

    /// The rows `self [rows, k]` in groups that end before `ends` (i32, one for each group, ascending, the last is `rows`), each times
    /// its own of `matrices [groups, k, n]`: `[rows, n]`. Matrices may be transposed.
    #[track_caller]
    pub fn grouped_mm(&self, matrices: &Self, ends: &Self) -> Self {
        expect(call(self, matrices, ends))
    }

    /// For each group of the rows of `self [rows, m]` and of `b [rows, n]`, which end as in [`Self::grouped_mm`], the product
    /// `self^T . b`: `[groups, m, n]`; zeros for a group without rows. Of `self`, columns may be a part of those of wider rows.
    #[track_caller]
    pub fn grouped_products(&self, b: &Self, ends: &Self) -> Self {
        // Both operands as they lie here. In other layouts a group may not be empty, and has to begin at a multiple of 8 rows.
        expect(call(&self.tr(), b, ends))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::{Action, Detail};

    fn waves(size: &[i64], speed: f32) -> Tensor {
        let numel: i64 = size.iter().product();
        let values: Vec<f32> = (0..numel).map(|i| (i as f32 * speed).sin()).collect();
        Tensor::from_slice(&values)
            .view(size)
            .to_kind(Kind::BFloat16)
    }

    fn assert_same(found: &Tensor, expected: &Tensor) {
        assert_eq!(found.size(), expected.size());
        let off = (found.to_kind(Kind::Float) - expected.to_kind(Kind::Float)).abs();
        let largest = off.to_vec::<f32>().into_iter().fold(0.0, f32::max);
        assert!(largest < 0.05, "{largest}");
    }

    #[test]
    fn the_cpu_has_none_and_a_pretended_device_does() {
        assert!(!has_grouped_products(Device::Cpu));
        let _pretended = pretend::cuda();
        assert!(has_grouped_products(Device::Cuda(0)));
    }

    #[test]
    fn what_has_no_kernel_does_not_suit() {
        let on_cpu = |size: &[i64], kind| Tensor::zeros(size, (kind, Device::Cpu));
        assert!(on_cpu(&[3, 16, 24], Kind::BFloat16).suits_groups());
        assert!(!on_cpu(&[3, 16, 20], Kind::BFloat16).suits_groups());
        assert!(!on_cpu(&[3, 20, 16], Kind::Float).suits_groups());
        assert!(!on_cpu(&[1024, 8, 8], Kind::BFloat16).suits_groups());
        for (kind, suits) in [(Kind::BFloat16, false), (Kind::Float, true)] {
            let unaligned = on_cpu(&[1025], kind).narrow(0, 1, 1024);
            assert_eq!(unaligned.view([2, 64, 8]).suits_groups(), suits);
        }
    }

    /// Each group against a product of its own; the host waits for none of them, and each is one operator.
    #[test]
    fn groups_are_what_their_products_are() {
        for ends in [[3, 3, 10, 11], [0, 11, 11, 11], [11, 11, 11, 11]] {
            let (x, matrices) = (waves(&[11, 16], 0.7), waves(&[4, 24, 16], 1.3));
            let d_y = waves(&[11, 32], 2.1);
            let (result, calls) = {
                let _pretended = pretend::cuda();
                let there = |tensor: &Tensor| tensor.to_device(Device::Cuda(0));
                let ends = there(&Tensor::from_slice(&ends));
                let (x, matrices, d_y) = (there(&x), there(&matrices), there(&d_y));
                recorder::record(Detail::Counts, || {
                    let y = x.grouped_mm(&matrices.transpose(1, 2), &ends);
                    let d_x = y.grouped_mm(&matrices, &ends);
                    // A part of the columns.
                    let d_y = d_y.narrow(1, 8, 24);
                    [y, d_x, d_y.grouped_products(&x, &ends)]
                })
            };
            let [y, d_x, products] = result;
            assert_eq!(y.device(), Device::Cuda(0));
            let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
            assert_eq!(names, ["aten::_grouped_mm"; 3]);
            assert!(calls.iter().all(|call| call.action == Action::Compute));

            let [y, d_x, products] = [y, d_x, products].map(|it| it.to_device(Device::Cpu));
            let mut start = 0;
            for (group, end) in ends.into_iter().enumerate() {
                let rows = |tensor: &Tensor| tensor.narrow(0, start, i64::from(end) - start);
                let matrix = matrices.get(group as i64);
                assert_same(&rows(&y), &rows(&x).mm(&matrix.tr()));
                assert_same(&rows(&d_x), &rows(&y).mm(&matrix));
                let part = rows(&d_y).narrow(1, 8, 24);
                assert_same(&products.get(group as i64), &part.tr().mm(&rows(&x)));
                start = i64::from(end);
            }
        }
    }
}
