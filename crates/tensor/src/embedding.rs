//! Embedding lookup in a shard of the vocabulary, and its sparse gradient.

pub mod aten;
mod fused;

use std::ops::Range;

use tandem_torch::{Kind, Tensor};

/// `scale` times the rows of `table` (`[rows, hidden]`, the vocabulary entries `vocab`) for `ids` (i64 `[tokens]`), rounded to
/// kind `out`; zero where the id belongs to another shard, so that the sum over shards is the lookup.
pub fn forward(table: &Tensor, ids: &Tensor, vocab: Range<i64>, scale: f64, out: Kind) -> Tensor {
    if vocab.is_empty() {
        return Tensor::zeros([ids.size()[0], table.size()[1]], (out, table.device()));
    }
    fused::forward(table, ids, &vocab, scale, out)
        .unwrap_or_else(|| aten::forward(table, ids, vocab, scale, out))
}

/// Adds `scale` times the rows of `d_out` (`[tokens, hidden]`) to the fp32 gradient `[rows, hidden]` of the table.
///
/// Rows of one id are added in the order of the tokens, so the result is bitwise repeatable on the CPU.
pub fn backward(d_table: &Tensor, d_out: &Tensor, ids: &Tensor, vocab: Range<i64>, scale: f64) {
    if vocab.is_empty() {
        return;
    }
    if fused::backward(d_table, d_out, ids, &vocab, scale).is_none() {
        aten::backward(d_table, d_out, ids, vocab, scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, dot, numeric_gradient, randn};

    #[test]
    fn shards_sum_to_the_whole_lookup_and_its_gradient() {
        let table = randn(&[11, 4], 1);
        let ids = Tensor::from_slice(&[0i64, 10, 3, 3, 7, 6, 3]);
        let d_out = randn(&[7, 4], 2);
        let scale = 3.0;
        let lookup = |table: &Tensor| table.index_select(0, &ids) * scale;
        let d_table = numeric_gradient(&table, |table| dot(&lookup(table), &d_out));

        let mut sum = Tensor::zeros([7, 4], (Kind::Float, tandem_torch::Device::Cpu));
        let gradient = table.zeros_like();
        for range in [0..5i64, 5..5, 5..11] {
            let part = table.narrow(0, range.start, range.end - range.start);
            sum += forward(&part, &ids, range.clone(), scale, Kind::Float);
            let d_part = gradient.narrow(0, range.start, range.end - range.start);
            backward(&d_part, &d_out, &ids, range, scale);
        }
        assert_close("lookup", &sum, &lookup(&table), 0.0);
        assert_close("gradient", &gradient, &d_table, 1e-6);
    }

    #[test]
    fn fused_kernels_match_tensor_operations() {
        for (kind, out, scale) in [
            (Kind::Float, Kind::Float, 1.0),
            (Kind::BFloat16, Kind::BFloat16, 6.0),
            (Kind::Float, Kind::BFloat16, 1.0),
            (Kind::BFloat16, Kind::Float, 6.0),
        ] {
            let (vocab, hidden) = (100..150i64, 37);
            let table = randn(&[50, hidden], 1).to_kind(kind);
            let ids: Vec<i64> = (0..300).map(|i| 90 + (i * i * 7) % 73).collect();
            let ids = Tensor::from_slice(&ids);
            let y = forward(&table, &ids, vocab.clone(), scale, out);
            let expected = aten::forward(&table, &ids, vocab.clone(), scale, out);
            assert_close(&format!("{kind:?} to {out:?}"), &y, &expected, 0.0);

            let d_out = randn(&[300, hidden], 2).to_kind(out);
            let (fused, plain) = (randn(&[50, hidden], 3), randn(&[50, hidden], 3));
            backward(&fused, &d_out, &ids, vocab.clone(), scale);
            aten::backward(&plain, &d_out, &ids, vocab, scale);
            // The same additions in the same order.
            assert_close(&format!("gradient from {out:?}"), &fused, &plain, 0.0);
        }
    }
}
