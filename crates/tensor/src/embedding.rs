//! Embedding lookup in a shard of the vocabulary, and its sparse gradient.

use std::ops::Range;

use tch::{Kind, Tensor};

/// Rows of `table` (`[rows, hidden]`, the vocabulary entries `vocab`) for `ids` (i64 `[tokens]`); zero where the id
/// belongs to another shard, so that the sum over shards is the lookup.
pub fn forward(table: &Tensor, ids: &Tensor, vocab: Range<i64>, out: Kind) -> Tensor {
    if vocab.is_empty() {
        return Tensor::zeros([ids.size()[0], table.size()[1]], (out, table.device()));
    }
    let (local, elsewhere) = localise(ids, vocab);
    let mut rows = table.index_select(0, &local).to_kind(out);
    let _ = rows.masked_fill_(&elsewhere.unsqueeze(1), 0.0);
    rows
}

/// Adds the rows of `d_out` (`[tokens, hidden]`) to the fp32 gradient `[rows, hidden]` of the table.
///
/// Rows of one id are added in the order of the tokens, so the result is bitwise repeatable on the CPU.
pub fn backward(d_table: &Tensor, d_out: &Tensor, ids: &Tensor, vocab: Range<i64>) {
    if vocab.is_empty() {
        return;
    }
    let mine = ids
        .ge(vocab.start)
        .logical_and(&ids.lt(vocab.end))
        .nonzero()
        .squeeze_dim(1);
    let local = ids.index_select(0, &mine) - vocab.start;
    let rows = d_out.index_select(0, &mine).to_kind(Kind::Float);
    let _ = d_table.shallow_clone().index_add_(0, &local, &rows);
}

/// Ids relative to the shard (0 where they are not in it), and where they are not in it.
fn localise(ids: &Tensor, vocab: Range<i64>) -> (Tensor, Tensor) {
    let elsewhere = ids.lt(vocab.start).logical_or(&ids.ge(vocab.end));
    let local = (ids - vocab.start).masked_fill(&elsewhere, 0);
    (local, elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, randn};

    #[test]
    fn shards_sum_to_the_whole_lookup_and_its_gradient() {
        let table = randn(&[11, 4], 1);
        let ids = Tensor::from_slice(&[0i64, 10, 3, 3, 7, 6, 3]);
        let d_out = randn(&[7, 4], 2);
        let ta = table.copy().set_requires_grad(true);
        let ya = ta.index_select(0, &ids);
        (&ya * &d_out).sum(Kind::Float).backward();

        let mut sum = Tensor::zeros([7, 4], (Kind::Float, tch::Device::Cpu));
        let gradient = table.zeros_like();
        for range in [0..5i64, 5..5, 5..11] {
            let part = table.narrow(0, range.start, range.end - range.start);
            sum += forward(&part, &ids, range.clone(), Kind::Float);
            let d_part = gradient.narrow(0, range.start, range.end - range.start);
            backward(&d_part, &d_out, &ids, range);
        }
        assert_close("lookup", &sum, &ya.detach(), 0.0);
        assert_close("gradient", &gradient, &ta.grad(), 1e-6);
    }
}
