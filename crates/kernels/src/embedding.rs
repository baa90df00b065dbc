//! Lookup in a shard of an embedding table and its sparse gradient, row by row.

use std::ops::Range;

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;
use crate::vocab::{entries, local};

/// Fills `y [tokens, hidden]` with `scale` times the rows of `table [entries of the shard, hidden]` for `ids [tokens]` of the
/// whole vocabulary; zeros where the id belongs to another shard.
///
/// # Panics
/// When the shard is empty, its rows have no elements, or a size does not fit.
pub fn forward<T: Element, Y: Element>(
    table: &[T],
    ids: &[i64],
    vocab: &Range<i64>,
    scale: f32,
    y: &mut [Y],
) {
    let hidden = checked_hidden(table, vocab, y, ids);
    let rows = y.chunks_exact_mut(hidden).zip(ids);
    dispatch::for_each(rows.map(|(y, &id)| {
        let row = local(id, vocab).map(|row| &table[row * hidden..(row + 1) * hidden]);
        Lookup { row, scale, y }
    }));
}

/// Adds `scale` times the rows of `d_out [tokens, hidden]` to the gradient `d_table [entries of the shard, hidden]`; those of other shards
/// are left out.
///
/// Rows of one id are added in the order of the tokens, so the result is bitwise repeatable.
///
/// # Panics
/// When the shard is empty, its rows have no elements, or a size does not fit.
pub fn backward<D: Element>(
    d_table: &mut [f32],
    d_out: &[D],
    ids: &[i64],
    vocab: &Range<i64>,
    scale: f32,
) {
    let hidden = checked_hidden(d_table, vocab, d_out, ids);
    // Tokens by row of the table; a stable sort keeps those of one row in their order.
    let mut tokens: Vec<(usize, usize)> = ids
        .iter()
        .enumerate()
        .filter_map(|(token, &id)| Some((local(id, vocab)?, token)))
        .collect();
    tokens.sort_by_key(|&(row, _)| row);
    let mut left = d_table;
    let mut start = 0;
    dispatch::for_each(tokens.chunk_by(|a, b| a.0 == b.0).map(|tokens| {
        let row = tokens[0].0;
        let rest = &mut std::mem::take(&mut left)[(row - start) * hidden..];
        let (d_row, rest) = rest.split_at_mut(hidden);
        (left, start) = (rest, row + 1);
        Scatter {
            d_row,
            tokens,
            rows: d_out,
            scale,
        }
    }));
}

/// The length of a row.
fn checked_hidden<T, Y>(table: &[T], vocab: &Range<i64>, rows: &[Y], ids: &[i64]) -> usize {
    let entries = entries(vocab);
    let hidden = table.len() / entries;
    assert!(
        hidden > 0 && table.len() == entries * hidden,
        "a table of {} elements is not {entries} rows",
        table.len()
    );
    assert_eq!(
        Some(rows.len()),
        ids.len().checked_mul(hidden),
        "{} rows of {hidden} elements",
        ids.len()
    );
    hidden
}

/// One token's vector; zeros where the shard has none.
struct Lookup<'a, T, Y> {
    row: Option<&'a [T]>,
    scale: f32,
    y: &'a mut [Y],
}

impl<T: Element, Y: Element> Kernel for Lookup<'_, T, Y> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        match self.row {
            Some(row) => {
                for (y, x) in self.y.iter_mut().zip(row) {
                    *y = Y::round(x.widen() * self.scale);
                }
            }
            None => self.y.fill(Y::round(0.0)),
        }
    }
}

/// All gradients of one row of the table, in the order of the tokens.
struct Scatter<'a, D> {
    d_row: &'a mut [f32],
    tokens: &'a [(usize, usize)],
    rows: &'a [D],
    scale: f32,
}

impl<D: Element> Kernel for Scatter<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let hidden = self.d_row.len();
        for &(_, token) in self.tokens {
            let row = &self.rows[token * hidden..(token + 1) * hidden];
            for (sum, d) in self.d_row.iter_mut().zip(row) {
                *sum += d.widen() * self.scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{bits, normal, numbers, unfilled};

    /// Ids in, before and behind the shard, some of them often.
    fn looks_up_and_scatters<T: Element, Y: Element>() {
        for (hidden, scale) in [(1, 1.0f32), (37, 1.0), (64, 7.5)] {
            let vocab = 100..150i64;
            let table = numbers::<T>(50 * hidden, 1, 1.0);
            let ids: Vec<i64> = (0..300).map(|i| 90 + (i * i * 7) % 73).collect();
            let mut y = unfilled::<Y>(ids.len() * hidden);
            forward(&table, &ids, &vocab, scale, &mut y);
            let d_out = numbers::<Y>(ids.len() * hidden, 2, 1.0);
            let mut d_table = normal(50 * hidden, 3);
            let mut expected_d = d_table.clone();
            backward(&mut d_table, &d_out, &ids, &vocab, scale);

            let mut expected = Vec::new();
            for (token, id) in ids.iter().enumerate() {
                for i in 0..hidden {
                    if !vocab.contains(id) {
                        expected.push(Y::round(0.0));
                        continue;
                    }
                    let at = (id - vocab.start) as usize * hidden + i;
                    expected.push(Y::round(table[at].widen() * scale));
                    expected_d[at] += d_out[token * hidden + i].widen() * scale;
                }
            }
            assert_eq!(bits(&y), bits(&expected));
            // The same additions in the same order.
            assert_eq!(bits(&d_table), bits(&expected_d));
        }
    }

    #[test]
    fn every_pair_of_kinds_is_exact() {
        looks_up_and_scatters::<f32, f32>();
        looks_up_and_scatters::<bf16, bf16>();
        looks_up_and_scatters::<f32, bf16>();
        looks_up_and_scatters::<bf16, f32>();
    }

    #[test]
    #[should_panic(expected = "not 4 rows")]
    fn a_table_of_another_shard_is_noticed() {
        forward(&[0f32; 6], &[0], &(0..4), 1.0, &mut [0f32; 1]);
    }
}
