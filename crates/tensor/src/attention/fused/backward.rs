//! Backward: blocks of queries, of which scores are computed again; gradients of keys and values add up over the blocks.

use std::ops::Range;

use half::bf16;
use tch::Tensor;

use super::Shape;
use super::heads::{Head, Heads};
use super::rows::{RowDots, SoftmaxGradient, Window};
use crate::cpu::element::slice;
use crate::cpu::kernel;
use crate::linear::{Accumulate, Store};
use crate::matmul::Operand;
use crate::matmul::panels::{Left, ROWS, Right, Sums, panel_start};

/// Queries of a block: the depth of the products that give the gradients of keys and values.
const BLOCK: usize = 8 * ROWS;

#[derive(Clone, Copy)]
pub(super) struct Tensors {
    pub(super) d_out: Heads,
    pub(super) q: Heads,
    pub(super) k: Heads,
    pub(super) v: Heads,
    pub(super) out: Heads,
    /// Written, as are the next two.
    pub(super) d_q: Heads,
    pub(super) d_k: Heads,
    pub(super) d_v: Heads,
}

/// A key/value head, packed for all query heads that share it.
#[derive(Default)]
struct Packed {
    /// Columns are positions.
    keys: Right,
    /// Columns are positions.
    values: Right,
    /// Columns are dimensions.
    keys_by_dimension: Right,
}

/// What one query head contributes, fp32 `[seq, dim]` each.
struct Contribution {
    d_k: Vec<f32>,
    d_v: Vec<f32>,
}

/// `logsumexp` is fp32 `[batch, heads, seq]`.
///
/// # Safety
/// The tensors have this shape; nobody else touches the results; the processor has the features.
pub(super) unsafe fn run(shape: Shape, t: Tensors, logsumexp: &Tensor) {
    let packed = shape.map(shape.kv_heads, |batch, head| {
        let mut packed = Packed::default();
        let (k, v) = (t.k.head(batch, head), t.v.head(batch, head));
        // SAFETY: passed on from the caller.
        unsafe {
            packed.keys.pack(k.positions(0), shape.seq, shape.dim);
            packed.values.pack(v.positions(0), shape.seq, shape.dim);
            let by_dimension = &mut packed.keys_by_dimension;
            by_dimension.pack(k.dimensions(0), shape.dim, shape.seq);
        }
        packed
    });
    let logsumexp = slice::<f32>(logsumexp);
    let contributions = shape.map(shape.heads, |batch, head| {
        let index = batch * shape.heads + head;
        let one = OneHead {
            shape,
            q: t.q.head(batch, head),
            d_out: t.d_out.head(batch, head),
            out: t.out.head(batch, head),
            d_q: t.d_q.head(batch, head),
            packed: &packed[batch * shape.kv_heads + shape.kv_of(head)],
            logsumexp: &logsumexp[index * shape.seq..][..shape.seq],
        };
        // SAFETY: passed on from the caller; this head of `d_q` is this task's alone.
        unsafe { one.run() }
    });
    let group = shape.heads / shape.kv_heads;
    shape.map(shape.kv_heads, |batch, head| {
        let first = batch * shape.heads + head * group;
        let parts = &contributions[first..first + group];
        let sum = |of: fn(&Contribution) -> &[f32]| {
            let mut sum = of(&parts[0]).to_vec();
            for part in &parts[1..] {
                kernel::run(Store {
                    gradient: &mut sum,
                    value: of(part),
                    accumulate: Accumulate::Add,
                });
            }
            sum
        };
        let (d_k, d_v) = (t.d_k.head(batch, head), t.d_v.head(batch, head));
        // SAFETY: the positions exist, and this key/value head is this task's alone.
        unsafe {
            d_k.store(0, &sum(|part| &part.d_k), |_| 1.0);
            d_v.store(0, &sum(|part| &part.d_v), |_| 1.0);
        }
    });
}

struct OneHead<'a> {
    shape: Shape,
    q: Head,
    d_out: Head,
    out: Head,
    d_q: Head,
    packed: &'a Packed,
    /// By position.
    logsumexp: &'a [f32],
}

/// What is reused from block to block.
struct Workspace {
    scores: Vec<f32>,
    d_probabilities: Vec<f32>,
    /// Of a whole block, as are the next.
    probabilities: Vec<bf16>,
    d_scores: Vec<bf16>,
    d_q: Vec<f32>,
    left: Left,
    queries: Right,
    d_outs: Right,
}

impl OneHead<'_> {
    /// # Safety
    /// As [`run`], for this head.
    unsafe fn run(&self) -> Contribution {
        let Shape { seq, dim, .. } = self.shape;
        let mut contribution = Contribution {
            d_k: vec![0.0; seq * dim],
            d_v: vec![0.0; seq * dim],
        };
        let delta = self.delta();
        let block = BLOCK.min(seq);
        let mut space = Workspace {
            scores: vec![0.0; ROWS * seq],
            d_probabilities: vec![0.0; ROWS * seq],
            probabilities: vec![bf16::ZERO; block * seq],
            d_scores: vec![bf16::ZERO; block * seq],
            d_q: vec![0.0; ROWS * dim],
            left: Left::default(),
            queries: Right::default(),
            d_outs: Right::default(),
        };
        for start in (0..seq).step_by(block) {
            let queries = start..seq.min(start + block);
            let keys = panel_start(self.shape.mask.keys(start).start)..queries.end;
            for first in queries.clone().step_by(ROWS) {
                let some = first..queries.end.min(first + ROWS);
                // SAFETY: passed on from the caller.
                unsafe { self.queries(&mut space, &delta, &queries, some, &keys) };
            }
            // SAFETY: passed on from the caller.
            unsafe { self.keys(&mut space, &queries, &keys, &mut contribution) };
        }
        contribution
    }

    /// By position: the sum of the products of output and output gradient.
    fn delta(&self) -> Vec<f32> {
        let seq = self.shape.seq;
        let mut delta = vec![0.0; seq];
        // SAFETY: the positions exist, and both tensors are only read.
        let pair = |position| unsafe { (self.out.row(position), self.d_out.row(position)) };
        kernel::run(RowDots {
            pairs: &(0..seq).map(pair).collect::<Vec<_>>(),
            out: &mut delta,
        });
        delta
    }

    /// Scores and their gradients for `some` of the block's queries, and the gradient of these queries.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn queries(
        &self,
        space: &mut Workspace,
        delta: &[f32],
        block: &Range<usize>,
        some: Range<usize>,
        keys: &Range<usize>,
    ) {
        let Shape { seq, dim, .. } = self.shape;
        let seen = keys.start..some.end;
        let row = (some.start - block.start) * seq;
        let sums = |data: &mut Vec<f32>, row| Sums {
            data: data.as_mut_ptr(),
            row,
            adds: false,
        };
        let count = (0, some.len());
        // SAFETY: queries and keys exist; a row of scores is as long as there are keys.
        unsafe {
            let left = &mut space.left;
            left.pack(self.q.positions(some.start), count, (0, dim));
            let scores = sums(&mut space.scores, seq);
            left.multiply(&self.packed.keys, 0, seen.clone(), scores);
            left.pack(self.d_out.positions(some.start), count, (0, dim));
            let d_probabilities = sums(&mut space.d_probabilities, seq);
            left.multiply(&self.packed.values, 0, seen.clone(), d_probabilities);
        }
        kernel::run(SoftmaxGradient {
            window: Window {
                mask: self.shape.mask,
                first_query: some.start,
                queries: some.len(),
                first_key: seen.start,
                keys: seen.len(),
                width: seq,
                scale: self.shape.scale,
            },
            scores: &space.scores,
            d_probabilities: &space.d_probabilities,
            logsumexp: &self.logsumexp[some.clone()],
            delta: &delta[some.clone()],
            probabilities: &mut space.probabilities[row..],
            d_scores: &mut space.d_scores[row..],
            filled: keys.len(),
        });
        let d_scores = Operand {
            data: space.d_scores[row..].as_ptr(),
            outer: seq,
            reduced: 1,
        };
        // SAFETY: as above; `d_q` has room for all queries and dimensions.
        unsafe {
            space.left.pack(d_scores, count, (0, seen.len()));
            let d_q = sums(&mut space.d_q, dim);
            let keys = &self.packed.keys_by_dimension;
            space.left.multiply(keys, seen.start, 0..dim, d_q);
        }
        let d_q = &space.d_q[..some.len() * dim];
        // SAFETY: the positions exist, and this head of `d_q` is written here alone.
        unsafe { self.d_q.store(some.start, d_q, |_| 1.0) };
    }

    /// Adds what the block's queries contribute to the gradients of keys and values.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn keys(
        &self,
        space: &mut Workspace,
        block: &Range<usize>,
        keys: &Range<usize>,
        contribution: &mut Contribution,
    ) {
        let Shape { seq, dim, .. } = self.shape;
        // SAFETY: the queries exist.
        unsafe {
            let queries = self.q.dimensions(block.start);
            space.queries.pack(queries, dim, block.len());
            let d_outs = self.d_out.dimensions(block.start);
            space.d_outs.pack(d_outs, dim, block.len());
        }
        for first in keys.clone().step_by(ROWS) {
            let rows = ROWS.min(keys.end - first);
            // Queries before the first of these keys see none of them. The depth begins with a pair.
            let skipped = first.saturating_sub(block.start) / 2 * 2;
            let depth = (skipped, block.len() - skipped);
            for (factors, right, sums) in [
                (&space.probabilities, &space.d_outs, &mut contribution.d_v),
                (&space.d_scores, &space.queries, &mut contribution.d_k),
            ] {
                // Rows are keys; sums run over queries.
                let operand = Operand {
                    data: factors.as_ptr(),
                    outer: 1,
                    reduced: seq,
                };
                let sums = Sums {
                    data: sums[first * dim..].as_mut_ptr(),
                    row: dim,
                    adds: true,
                };
                // SAFETY: the block's rows are filled for all of its keys; the sums have a row for every key.
                unsafe {
                    space.left.pack(operand, (first - keys.start, rows), depth);
                    space.left.multiply(right, skipped, 0..dim, sums);
                }
            }
        }
    }
}
