//! Backward: blocks of queries, of which scores are computed again; gradients of keys and values add up over the blocks.

use std::ops::Range;

use half::bf16;

use super::heads::{Head, HeadMut, Heads};
use super::rows::{Mask, RowDots, SoftmaxGradient, Window};
use super::{Inputs, Shape, Spec};
use crate::accumulate::Accumulate;
use crate::aligned::Aligned;
use crate::avx512_bf16::Avx512Bf16;
use crate::dispatch;
use crate::linear::Store;
use crate::matmul::MatrixView;
use crate::matmul::panels::{Left, ROWS, Right, Sums, panel_start};

/// Queries of a block: the depth of the products that give the gradients of keys and values.
const BLOCK: usize = 8 * ROWS;

/// What [`forward`](super::forward) computed.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// `[batch, seq, heads, head_dim]`.
    pub out: Heads<'a>,
    /// `[batch, heads, seq]`.
    pub logsumexp: &'a [f32],
}

/// What [`backward`] fills.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[batch, seq, heads, head_dim]`.
    pub d_q: &'a mut [bf16],
    /// `[batch, seq, kv_heads, head_dim]`.
    pub d_k: &'a mut [bf16],
    /// As `d_k`.
    pub d_v: &'a mut [bf16],
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
    d_k: Aligned<f32>,
    d_v: Aligned<f32>,
}

impl Contribution {
    fn add(&mut self, other: &Self) {
        for (sum, other) in [(&mut self.d_k, &other.d_k), (&mut self.d_v, &other.d_v)] {
            dispatch::run(Store {
                gradient: sum,
                value: &other[..],
                accumulate: Accumulate::Add,
            });
        }
    }
}

/// The gradients of [`forward`](super::forward), from `d_out [batch, seq, heads, head_dim]` and what went into and came out
/// of it.
///
/// # Panics
/// When sizes do not fit or the scale is not positive.
pub fn backward(
    cpu: Avx512Bf16,
    inputs: Inputs<'_>,
    spec: Spec,
    saved: Saved<'_>,
    d_out: Heads<'_>,
    gradients: Gradients<'_>,
) {
    let shape = Shape::of(cpu, &inputs, spec);
    let Inputs { q, k, v, .. } = inputs;
    let (seq, count) = (shape.seq, shape.batch * shape.heads);
    let sizes = [d_out.size(), saved.out.size()];
    assert_eq!(sizes, [q.size(); 2], "the output and its gradient");
    let logsumexp = saved.logsumexp;
    assert_eq!(logsumexp.len(), count * seq, "a number for every query");
    let packed = dispatch::in_parallel(0..shape.batch * shape.kv_heads, |index| {
        let mut packed = Packed::default();
        packed.keys.pack(cpu, k.head(index).positions(0..seq));
        packed.values.pack(cpu, v.head(index).positions(0..seq));
        let by_dimension = k.head(index).dimensions(0..seq);
        packed.keys_by_dimension.pack(cpu, by_dimension);
        packed
    });
    let group = shape.group();
    let d_qs = HeadMut::all(gradients.d_q, q.size()).enumerate();
    let mut contributions = dispatch::in_parallel(d_qs, |(index, d_q)| {
        let one = OneHead {
            shape,
            mask: shape.mask(index),
            q: q.head(index),
            d_out: d_out.head(index),
            out: saved.out.head(index),
            packed: &packed[index / group],
            logsumexp: &logsumexp[index * seq..][..seq],
        };
        one.run(d_q)
    });
    let d_ks = HeadMut::all(gradients.d_k, k.size());
    let d_vs = HeadMut::all(gradients.d_v, v.size());
    let tasks = contributions.chunks_exact_mut(group).zip(d_ks.zip(d_vs));
    dispatch::in_parallel(tasks, |(parts, (mut d_k, mut d_v))| {
        // A group has a head.
        if let [sum, others @ ..] = parts {
            others.iter().for_each(|other| sum.add(other));
            d_k.store(0, &sum.d_k, |_| 1.0);
            d_v.store(0, &sum.d_v, |_| 1.0);
        }
    });
}

struct OneHead<'a> {
    shape: Shape<'a>,
    mask: Mask<'a>,
    q: Head<'a>,
    d_out: Head<'a>,
    out: Head<'a>,
    packed: &'a Packed,
    /// By position.
    logsumexp: &'a [f32],
}

/// What is reused from block to block.
struct Workspace {
    scores: Aligned<f32>,
    d_probabilities: Aligned<f32>,
    /// Of a whole block, as are the next.
    probabilities: Aligned<bf16>,
    d_scores: Aligned<bf16>,
    d_q: Aligned<f32>,
    left: Left,
    queries: Right,
    d_outs: Right,
}

impl OneHead<'_> {
    fn run(&self, mut d_q: HeadMut<'_>) -> Contribution {
        let Shape { seq, dim, .. } = self.shape;
        let mut contribution = Contribution {
            d_k: Aligned::zeros(seq * dim),
            d_v: Aligned::zeros(seq * dim),
        };
        let delta = self.delta();
        let width = self.shape.width();
        let block = BLOCK.min(seq);
        let mut space = Workspace {
            scores: Aligned::zeros(ROWS * width),
            d_probabilities: Aligned::zeros(ROWS * width),
            probabilities: Aligned::zeros(block * width),
            d_scores: Aligned::zeros(block * width),
            d_q: Aligned::zeros(ROWS * dim),
            left: Left::default(),
            queries: Right::default(),
            d_outs: Right::default(),
        };
        for start in (0..seq).step_by(block) {
            let queries = start..seq.min(start + block);
            let keys = panel_start(self.mask.keys(start).start)..queries.end;
            for first in queries.clone().step_by(ROWS) {
                let some = first..queries.end.min(first + ROWS);
                self.queries(&mut space, &delta, &queries, some.clone(), &keys);
                d_q.store(first, &space.d_q[..some.len() * dim], |_| 1.0);
            }
            self.keys(&mut space, &queries, &keys, &mut contribution);
        }
        contribution
    }

    /// By position: the sum of the products of output and output gradient.
    fn delta(&self) -> Vec<f32> {
        let seq = self.shape.seq;
        let mut delta = vec![0.0; seq];
        let pair = |position| (self.out.row(position), self.d_out.row(position));
        dispatch::run(RowDots {
            pairs: &(0..seq).map(pair).collect::<Vec<_>>(),
            out: &mut delta,
        });
        delta
    }

    /// Scores and their gradients for `some` of the block's queries, and the gradient of these queries.
    fn queries(
        &self,
        space: &mut Workspace,
        delta: &[f32],
        block: &Range<usize>,
        some: Range<usize>,
        keys: &Range<usize>,
    ) {
        let Shape { cpu, dim, .. } = self.shape;
        let width = self.shape.width();
        // Further queries of the block may be of further documents.
        let first = match self.mask.documents {
            Some(_) => panel_start(self.mask.keys(some.start).start),
            None => keys.start,
        };
        let (seen, before) = (first..some.end, first - keys.start);
        let row = (some.start - block.start) * width;
        let count = some.len();
        let left = &mut space.left;
        for (queries, right, scores) in [
            (self.q, &self.packed.keys, &mut space.scores),
            (self.d_out, &self.packed.values, &mut space.d_probabilities),
        ] {
            left.pack(cpu, queries.positions(some.clone()), 0..count, 0..dim);
            let scores = Sums {
                data: scores,
                row: width,
                adds: false,
            };
            left.multiply(cpu, right, 0, seen.clone(), scores);
        }
        dispatch::run(SoftmaxGradient {
            window: Window {
                mask: self.mask,
                first_query: some.start,
                queries: count,
                first_key: seen.start,
                keys: seen.len(),
                width,
                scale: self.shape.scale,
                soft_cap: self.shape.soft_cap,
            },
            scores: &space.scores,
            d_probabilities: &space.d_probabilities,
            logsumexp: &self.logsumexp[some.clone()],
            delta: &delta[some.clone()],
            probabilities: &mut space.probabilities[row..],
            d_scores: &mut space.d_scores[row..],
            filled: keys.len(),
            before,
        });
        let d_scores = &space.d_scores[row + before..];
        let d_scores = MatrixView::new(d_scores, count, seen.len(), width, 1);
        let d_q = Sums {
            data: &mut space.d_q,
            row: dim,
            adds: false,
        };
        left.pack(cpu, d_scores, 0..count, 0..seen.len());
        left.multiply(cpu, &self.packed.keys_by_dimension, seen.start, 0..dim, d_q);
    }

    /// Adds what the block's queries contribute to the gradients of keys and values.
    fn keys(
        &self,
        space: &mut Workspace,
        block: &Range<usize>,
        keys: &Range<usize>,
        contribution: &mut Contribution,
    ) {
        let Shape { cpu, dim, .. } = self.shape;
        let width = self.shape.width();
        let queries = self.q.dimensions(block.clone());
        space.queries.pack(cpu, queries);
        let d_outs = self.d_out.dimensions(block.clone());
        space.d_outs.pack(cpu, d_outs);
        for first in keys.clone().step_by(ROWS) {
            let rows = first..keys.end.min(first + ROWS);
            // Queries before the first of these keys see none of them, nor do those of later documents. The depth begins
            // with a pair.
            let seeing = self.mask.queries(block, &rows);
            if seeing.is_empty() {
                continue;
            }
            let rows = rows.start - keys.start..rows.end - keys.start;
            let (skipped, end) = (
                (seeing.start - block.start) / 2 * 2,
                seeing.end - block.start,
            );
            for (factors, right, sums) in [
                (&space.probabilities, &space.d_outs, &mut contribution.d_v),
                (&space.d_scores, &space.queries, &mut contribution.d_k),
            ] {
                // Rows are keys; sums run over queries.
                let factors = MatrixView::new(factors, keys.len(), block.len(), 1, width);
                let sums = Sums {
                    data: &mut sums[first * dim..],
                    row: dim,
                    adds: true,
                };
                let left = &mut space.left;
                left.pack(cpu, factors, rows.clone(), skipped..end);
                left.multiply(cpu, right, skipped, 0..dim, sums);
            }
        }
    }
}
