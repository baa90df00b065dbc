//! Lookup and its gradient as kernels over rows.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::cpu::element::{Element, Stored, is_plain, slice, slice_mut, with_element};
use crate::cpu::kernel::{self, InstructionSet, Kernel};

/// As [`super::forward`]; `None` where the kernel does not apply.
pub(super) fn forward(
    table: &Tensor,
    ids: &Tensor,
    vocab: &Range<i64>,
    out: Kind,
) -> Option<Tensor> {
    with_element!(table.kind(), T => with_element!(out, Y => {
        let hidden = hidden::<T>(table, ids, vocab)?;
        let y = Tensor::empty([ids.size()[0], hidden as i64], (out, Device::Cpu));
        // SAFETY: `y` was made here.
        let rows = unsafe { slice_mut::<Y>(&y) }.chunks_exact_mut(hidden);
        let table = slice::<T>(table);
        kernel::for_each(rows.zip(slice::<i64>(ids)).map(|(y, &id)| {
            let row = local(id, vocab).map(|row| &table[row * hidden..(row + 1) * hidden]);
            Lookup { row, y }
        }));
        Some(y)
    }))
}

/// As [`super::backward`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn backward(
    d_table: &Tensor,
    d_out: &Tensor,
    ids: &Tensor,
    vocab: &Range<i64>,
) -> Option<()> {
    with_element!(d_out.kind(), D => {
        let hidden = hidden::<f32>(d_table, ids, vocab)?;
        if !is_plain::<D>(d_out) || d_out.size() != [ids.size()[0], hidden as i64] {
            return None;
        }
        let rows = slice::<D>(d_out);
        // Tokens by row of the table; a stable sort keeps those of one row in their order.
        let mut tokens: Vec<(usize, usize)> = slice::<i64>(ids)
            .iter()
            .enumerate()
            .filter_map(|(token, &id)| Some((local(id, vocab)?, token)))
            .collect();
        tokens.sort_by_key(|&(row, _)| row);
        // SAFETY: `ids` is of another kind; `d_out` is the gradient of activations, never a part of a gradient buffer.
        let mut left = unsafe { slice_mut::<f32>(d_table) };
        let mut start = 0;
        kernel::for_each(tokens.chunk_by(|a, b| a.0 == b.0).map(|tokens| {
            let row = tokens[0].0;
            let (d_row, rest) = std::mem::take(&mut left)[(row - start) * hidden..].split_at_mut(hidden);
            (left, start) = (rest, row + 1);
            Scatter { d_row, tokens, rows }
        }));
        Some(())
    })
}

/// The length of a row, where the kernels can work on it.
fn hidden<T: Stored>(table: &Tensor, ids: &Tensor, vocab: &Range<i64>) -> Option<usize> {
    let suits = is_plain::<T>(table)
        && is_plain::<i64>(ids)
        && table.dim() == 2
        && table.size()[0] == vocab.end - vocab.start
        && table.numel() > 0;
    suits.then(|| table.size()[1] as usize)
}

/// The row of `id` in this shard.
fn local(id: i64, vocab: &Range<i64>) -> Option<usize> {
    vocab.contains(&id).then(|| (id - vocab.start) as usize)
}

/// One token's vector; zeros where the shard has none.
struct Lookup<'a, T, Y> {
    row: Option<&'a [T]>,
    y: &'a mut [Y],
}

impl<T: Element, Y: Element> Kernel for Lookup<'_, T, Y> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        match self.row {
            Some(row) => {
                for (y, x) in self.y.iter_mut().zip(row) {
                    *y = Y::round(x.widen());
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
}

impl<D: Element> Kernel for Scatter<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let hidden = self.d_row.len();
        for &(_, token) in self.tokens {
            let row = &self.rows[token * hidden..(token + 1) * hidden];
            for (sum, d) in self.d_row.iter_mut().zip(row) {
                *sum += d.widen();
            }
        }
    }
}
