//! The experts' matrix products: each expert's rows with its own weights.

use std::ops::Range;

use tandem_kernels::Accumulate;
use tandem_torch::{Kind, Tensor, has_grouped_products};

use crate::linear;

/// The rows of each expert, in the order of the experts.
#[derive(Debug)]
pub enum Groups {
    /// As the host knows them: a product for each expert.
    Known(Vec<Range<usize>>),
    /// Where they end, i32 `[experts]`, on the rows' device: one product for all.
    OnDevice(Tensor),
}

impl Groups {
    /// The rows of each expert. CUDA: where they are on the device, the host waits for them.
    pub fn sizes(&self) -> Vec<usize> {
        match self {
            Self::Known(rows) => rows.iter().map(ExactSizeIterator::len).collect(),
            Self::OnDevice(ends) => {
                let ends = ends.to_vec::<i64>();
                let starts = std::iter::once(&0).chain(&ends);
                starts.zip(&ends).map(|(a, b)| (b - a) as usize).collect()
            }
        }
    }
}

/// Whether products of rows like `x [.., features]` with these `weights`, each `[experts, out, in]`, need nothing from the host: in
/// bf16, with widths that are multiples of 16 bytes, on a device that has products by groups.
pub fn stay_on_device(x: &Tensor, weights: &[&Tensor]) -> bool {
    x.device().is_cuda()
        && x.kind() == Kind::BFloat16
        && weights.iter().all(|weight| weight.suits_groups())
        && has_grouped_products(x.device())
}

/// `x [rows, in] . weight^T` for each expert's rows, with its part of `weights [experts, out, in]`: `[rows, out]`.
pub fn forward(x: &Tensor, weights: &Tensor, groups: &Groups) -> Tensor {
    match groups {
        Groups::Known(rows) => one_by_one(x, weights, rows, linear::forward_into, 1),
        Groups::OnDevice(ends) => x.grouped_mm(&weights.to_kind(x.kind()).transpose(1, 2), ends),
    }
}

/// Gradient with respect to the input: `d_y [rows, out] . weight` for each expert's rows: `[rows, in]`.
pub fn backward_input(d_y: &Tensor, weights: &Tensor, groups: &Groups) -> Tensor {
    match groups {
        Groups::Known(rows) => one_by_one(d_y, weights, rows, linear::backward_input_into, 2),
        Groups::OnDevice(ends) => d_y.grouped_mm(&weights.to_kind(d_y.kind()), ends),
    }
}

/// Writes or adds to the fp32 gradients `[experts, out, in]` each expert's `d_y^T [out, rows] . x [rows, in]`; zeros for one without
/// rows.
pub fn backward_weight(
    d_weights: &Tensor,
    d_y: &Tensor,
    x: &Tensor,
    groups: &Groups,
    accumulate: Accumulate,
) {
    match groups {
        Groups::Known(rows) => {
            for (expert, rows) in rows.iter().enumerate() {
                let d_weight = d_weights.get(expert as i64);
                if !rows.is_empty() {
                    let (d_y, x) = (part(d_y, rows), part(x, rows));
                    linear::backward_weight(&d_weight, &d_y, &x, accumulate);
                } else if accumulate == Accumulate::First {
                    // Nobody's gradient is zero, not what happens to be in the buffer.
                    d_weight.zero_();
                }
            }
        }
        Groups::OnDevice(ends) => in_blocks(d_weights, d_y, x, ends, accumulate),
    }
}

/// Bytes of products in bf16 that exist at a time, so that those of a layer's experts, which may be gigabytes, do not come on top of
/// their gradients.
const BLOCK_BYTES: i64 = 64 << 20;

/// Blocks have a multiple of this many rows of the weights, so that the kernels see whole tiles.
const BLOCK_ALIGN: i64 = 256;

/// The operator has no fp32 result: a block of rows of all experts after the other is computed in bf16, and converted.
fn in_blocks(d_weights: &Tensor, d_y: &Tensor, x: &Tensor, ends: &Tensor, accumulate: Accumulate) {
    let row = (d_weights.size()[0] * d_weights.size()[2]).max(1);
    let block = block_rows(row * x.kind().elt_size_in_bytes() as i64);
    in_blocks_of(block, d_weights, d_y, x, ends, accumulate);
}

fn in_blocks_of(
    block: i64,
    d_weights: &Tensor,
    d_y: &Tensor,
    x: &Tensor,
    ends: &Tensor,
    accumulate: Accumulate,
) {
    let rows = d_weights.size()[1];
    for start in (0..rows).step_by(block as usize) {
        let len = block.min(rows - start);
        let product = d_y.narrow(1, start, len).grouped_products(x, ends);
        linear::store(&d_weights.narrow(1, start, len), &product, accumulate);
    }
}

fn block_rows(row_bytes: i64) -> i64 {
    (BLOCK_BYTES / row_bytes / BLOCK_ALIGN * BLOCK_ALIGN).max(BLOCK_ALIGN)
}

/// One product for each expert's rows of `x`, into one tensor; `dimension` is that of the weights which the result is as wide as.
fn one_by_one(
    x: &Tensor,
    weights: &Tensor,
    rows: &[Range<usize>],
    product: impl Fn(&Tensor, &Tensor, &Tensor),
    dimension: usize,
) -> Tensor {
    let size = [x.size()[0], weights.size()[dimension]];
    let out = Tensor::empty(size, (x.kind(), x.device()));
    for (expert, rows) in rows.iter().enumerate() {
        if !rows.is_empty() {
            let weight = weights.get(expert as i64);
            product(&part(&out, rows), &part(x, rows), &weight);
        }
    }
    out
}

fn part(x: &Tensor, rows: &Range<usize>) -> Tensor {
    x.narrow(0, rows.start as i64, rows.len() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_torch::{Device, pretend};

    use crate::cpu::testing::{assert_close, randn};

    #[test]
    fn blocks_are_whole_tiles_of_a_bounded_size() {
        assert_eq!(block_rows(8 * 4096 * 2), 1024);
        assert_eq!(block_rows(60 * 1400 * 2), 256);
        assert_eq!(block_rows(1 << 30), 256);
    }

    /// More rows of the weights than one block has.
    #[test]
    fn gradients_in_blocks_are_those_of_each_expert() {
        let (rows, columns, experts) = (BLOCK_ALIGN + 8, 16, 3);
        let size = [experts, rows, columns];
        let half = |size: &[i64], seed| randn(size, seed).to_kind(Kind::BFloat16);
        let (d_y, x) = (half(&[7, rows], 1), half(&[7, columns], 2));
        let known = Groups::Known(vec![0..4, 4..4, 4..7]);
        let (expected, found) = (randn(&size, 3), randn(&size, 3));
        for accumulate in [Accumulate::First, Accumulate::Add] {
            backward_weight(&expected, &d_y, &x, &known, accumulate);
            let _pretended = pretend::cuda();
            let there = |tensor: &Tensor| tensor.to_device(Device::Cuda(0));
            let ends = there(&Tensor::from_slice(&[4i32, 4, 7]));
            let gradients = there(&found);
            let block = BLOCK_ALIGN;
            in_blocks_of(
                block,
                &gradients,
                &there(&d_y),
                &there(&x),
                &ends,
                accumulate,
            );
            found.copy_(&gradients.to_device(Device::Cpu));
        }
        assert_close("gradients", &found, &expected, 1e-2);
    }

    #[test]
    fn what_has_no_product_by_groups_does_not_stay() {
        let weights = |size: &[i64], kind| randn(size, 1).to_kind(kind);
        let x = randn(&[4, 16], 2).to_kind(Kind::BFloat16);
        let good = weights(&[3, 8, 16], Kind::BFloat16);
        assert!(!stay_on_device(&x, &[&good]));
        let _pretended = pretend::cuda();
        let there = |tensor: &Tensor| tensor.to_device(Device::Cuda(0));
        let (x, good) = (there(&x), there(&good));
        assert!(stay_on_device(&x, &[&good, &good]));
        assert!(stay_on_device(
            &x,
            &[&there(&weights(&[3, 8, 16], Kind::Float))]
        ));
        assert!(!stay_on_device(&x.to_kind(Kind::Float), &[&good]));
        for size in [[3, 12, 16], [3, 8, 12], [1024, 8, 8]] {
            for kind in [Kind::Float, Kind::BFloat16] {
                let odd = there(&weights(&size, kind));
                assert!(!stay_on_device(&x, &[&good, &odd]), "{odd:?}");
            }
        }
    }
}
