//! Lookup and its gradient as tensor operations: for any device and kind, and the yardstick of the fused kernels.

use std::ops::Range;

use tandem_torch::{Kind, Tensor};

/// As [`super::forward`], for a shard that is not empty.
pub fn forward(table: &Tensor, ids: &Tensor, vocab: Range<i64>, scale: f64, out: Kind) -> Tensor {
    let elsewhere = ids.lt(vocab.start).logical_or(&ids.ge(vocab.end));
    let local = (ids - vocab.start).masked_fill(&elsewhere, 0);
    let rows = table.index_select(0, &local);
    let rows = match scale {
        1.0 => rows.to_kind(out),
        scale => (rows.to_kind(Kind::Float) * scale).to_kind(out),
    };
    rows.masked_fill_(&elsewhere.unsqueeze(1), 0.0);
    rows
}

/// As [`super::backward`], for a shard that is not empty.
pub fn backward(d_table: &Tensor, d_out: &Tensor, ids: &Tensor, vocab: Range<i64>, scale: f64) {
    // Rows of other shards add nothing to the first one: choosing would make the host wait for a device.
    let elsewhere = ids.lt(vocab.start).logical_or(&ids.ge(vocab.end));
    let local = (ids - vocab.start).masked_fill(&elsewhere, 0);
    let rows = d_out.to_kind(Kind::Float);
    let rows = rows.masked_fill(&elsewhere.unsqueeze(1), 0.0);
    let rows = if scale == 1.0 { rows } else { rows * scale };
    d_table.index_add_(0, &local, &rows);
}
