//! Lookup and its gradient as kernels over rows.

use std::ops::Range;

use tandem_kernels::embedding;
use tandem_torch::{Device, Kind, Tensor};

use crate::cpu::element::{Stored, is_plain, slice, slice_mut, with_element};

/// As [`super::forward`]; `None` where the kernel does not apply.
pub(super) fn forward(
    table: &Tensor,
    ids: &Tensor,
    vocab: &Range<i64>,
    scale: f64,
    out: Kind,
) -> Option<Tensor> {
    with_element!(table.kind(), T => with_element!(out, Y => {
        let hidden = hidden::<T>(table, ids, vocab)?;
        let y = Tensor::empty([ids.numel() as i64, hidden], (out, Device::Cpu));
        // SAFETY: `y` was made here.
        let rows = unsafe { slice_mut::<Y>(&y) };
        embedding::forward(slice::<T>(table), slice::<i64>(ids), vocab, scale as f32, rows);
        Some(y)
    }))
}

/// As [`super::backward`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn backward(
    d_table: &Tensor,
    d_out: &Tensor,
    ids: &Tensor,
    vocab: &Range<i64>,
    scale: f64,
) -> Option<()> {
    with_element!(d_out.kind(), D => {
        let hidden = hidden::<f32>(d_table, ids, vocab)?;
        if !is_plain::<D>(d_out) || d_out.size() != [ids.numel() as i64, hidden] {
            return None;
        }
        // SAFETY: `ids` is of another kind; `d_out` is the gradient of activations, never a part of a gradient buffer.
        let d_table = unsafe { slice_mut::<f32>(d_table) };
        let (d_out, ids) = (slice::<D>(d_out), slice::<i64>(ids));
        embedding::backward(d_table, d_out, ids, vocab, scale as f32);
        Some(())
    })
}

/// The length of a row, where the kernels can work on it.
fn hidden<T: Stored>(table: &Tensor, ids: &Tensor, vocab: &Range<i64>) -> Option<i64> {
    let suits = is_plain::<T>(table)
        && is_plain::<i64>(ids)
        && ids.dim() == 1
        && table.dim() == 2
        && table.size()[0] == vocab.end - vocab.start
        && table.numel() > 0;
    suits.then(|| table.size()[1])
}
