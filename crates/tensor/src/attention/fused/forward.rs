//! Forward: scores, softmax and output of a few queries after the other.

use half::bf16;
use tch::Tensor;

use super::Shape;
use super::heads::{Head, Heads};
use super::rows::{Softmax, Window};
use crate::cpu::element::slice_mut;
use crate::cpu::kernel;
use crate::matmul::Operand;
use crate::matmul::panels::{Left, ROWS, Right, Sums, panel_start};

#[derive(Clone, Copy)]
pub(super) struct Inputs {
    pub(super) q: Heads,
    pub(super) k: Heads,
    pub(super) v: Heads,
    /// Written.
    pub(super) out: Heads,
}

/// A key/value head, packed for all query heads that share it.
#[derive(Default)]
struct Packed {
    /// Columns are positions.
    keys: Right,
    /// Columns are dimensions.
    values: Right,
}

/// `logsumexp` is fp32 `[batch, heads, seq]`.
///
/// # Safety
/// The tensors have this shape; nobody else touches the results; the processor has the features.
pub(super) unsafe fn run(shape: Shape, inputs: Inputs, logsumexp: &Tensor) {
    let packed = shape.map(shape.kv_heads, |batch, head| {
        let mut packed = Packed::default();
        let (k, v) = (inputs.k.head(batch, head), inputs.v.head(batch, head));
        // SAFETY: passed on from the caller.
        unsafe {
            packed.keys.pack(k.positions(0), shape.seq, shape.dim);
            packed.values.pack(v.dimensions(0), shape.dim, shape.seq);
        }
        packed
    });
    let heads = shape.map(shape.heads, |batch, head| {
        let mut sums = vec![0f32; shape.seq];
        let packed = &packed[batch * shape.kv_heads + shape.kv_of(head)];
        let (q, out) = (inputs.q.head(batch, head), inputs.out.head(batch, head));
        // SAFETY: passed on from the caller; this head of the output is this task's alone.
        unsafe { one_head(shape, q, packed, out, &mut sums) };
        sums
    });
    // SAFETY: passed on from the caller.
    let logsumexp = unsafe { slice_mut::<f32>(logsumexp) };
    for (logsumexp, head) in logsumexp.chunks_exact_mut(shape.seq).zip(&heads) {
        logsumexp.copy_from_slice(head);
    }
}

/// # Safety
/// As [`run`], for this head.
unsafe fn one_head(shape: Shape, q: Head, packed: &Packed, out: Head, logsumexp: &mut [f32]) {
    let width = shape.seq;
    let mut scores = vec![0f32; ROWS * width];
    let mut probabilities = vec![bf16::ZERO; ROWS * width];
    let mut inverse = [0f32; ROWS];
    let mut sums = vec![0f32; ROWS * shape.dim];
    let mut left = Left::default();
    for first in (0..shape.seq).step_by(ROWS) {
        let queries = ROWS.min(shape.seq - first);
        let keys = panel_start(shape.mask.keys(first).start)..first + queries;
        let into_scores = Sums {
            data: scores.as_mut_ptr(),
            row: width,
            adds: false,
        };
        // SAFETY: the queries and keys exist; a row of scores is as long as there are keys.
        unsafe {
            left.pack(q.positions(first), (0, queries), (0, shape.dim));
            left.multiply(&packed.keys, 0, keys.clone(), into_scores);
        }
        kernel::run(Softmax {
            window: Window {
                mask: shape.mask,
                first_query: first,
                queries,
                first_key: keys.start,
                keys: keys.len(),
                width,
                scale: shape.scale,
            },
            scores: &mut scores,
            probabilities: &mut probabilities,
            inverse: &mut inverse,
            logsumexp: &mut logsumexp[first..],
        });
        let probabilities = Operand {
            data: probabilities.as_ptr(),
            outer: width,
            reduced: 1,
        };
        let into_sums = Sums {
            data: sums.as_mut_ptr(),
            row: shape.dim,
            adds: false,
        };
        // SAFETY: as above; the sums have room for all queries and dimensions.
        unsafe {
            left.pack(probabilities, (0, queries), (0, keys.len()));
            left.multiply(&packed.values, keys.start, 0..shape.dim, into_sums);
        }
        // SAFETY: the positions exist, and this head of the output is written here alone.
        unsafe { out.store(first, &sums[..queries * shape.dim], |row| inverse[row]) };
    }
}
