//! Forward: scores, softmax and output of a few queries after the other.

use half::bf16;

use super::heads::{Head, HeadMut};
use super::rows::{Mask, Softmax, Window};
use super::{Inputs, Shape, Spec};
use crate::aligned::Aligned;
use crate::avx512_bf16::Avx512Bf16;
use crate::dispatch;
use crate::matmul::MatrixView;
use crate::matmul::panels::{Left, ROWS, Right, Sums, panel_start};

/// A key/value head, packed for all query heads that share it.
#[derive(Default)]
struct Packed {
    /// Columns are positions.
    keys: Right,
    /// Columns are dimensions.
    values: Right,
}

/// `softmax(scale * q k^T + mask) v`, into `out [batch, seq, heads, head_dim]`, and the logarithm of the sum of the
/// exponentials of every query's scores, into `logsumexp [batch, heads, seq]`.
///
/// # Panics
/// When sizes do not fit or the scale is not positive.
pub fn forward(
    cpu: Avx512Bf16,
    inputs: Inputs<'_>,
    spec: Spec,
    out: &mut [bf16],
    logsumexp: &mut [f32],
) {
    let shape = Shape::of(cpu, &inputs, spec);
    let (seq, count) = (shape.seq, shape.batch * shape.heads);
    assert_eq!(logsumexp.len(), count * seq, "a number for every query");
    let Inputs { q, k, v, .. } = inputs;
    let packed = dispatch::in_parallel(0..shape.batch * shape.kv_heads, |index| {
        let mut packed = Packed::default();
        packed.keys.pack(cpu, k.head(index).positions(0..seq));
        packed.values.pack(cpu, v.head(index).dimensions(0..seq));
        packed
    });
    let outputs = HeadMut::all(out, q.size()).zip(logsumexp.chunks_exact_mut(seq));
    dispatch::in_parallel(outputs.enumerate(), |(index, (out, logsumexp))| {
        // Heads that share keys and values are neighbours, and no group reaches into the next batch row.
        let packed = &packed[index / shape.group()];
        let mask = shape.mask(index);
        one_head(shape, mask, q.head(index), packed, out, logsumexp);
    });
}

fn one_head(
    shape: Shape<'_>,
    mask: Mask<'_>,
    q: Head<'_>,
    packed: &Packed,
    mut out: HeadMut<'_>,
    logsumexp: &mut [f32],
) {
    let Shape { cpu, seq, dim, .. } = shape;
    let width = shape.width();
    let mut scores = Aligned::<f32>::zeros(ROWS * width);
    let mut probabilities = Aligned::<bf16>::zeros(ROWS * width);
    let mut inverse = [0f32; ROWS];
    let mut sums = Aligned::<f32>::zeros(ROWS * dim);
    let mut left = Left::default();
    for first in (0..seq).step_by(ROWS) {
        let queries = ROWS.min(seq - first);
        let keys = panel_start(mask.keys(first).start)..first + queries;
        let into_scores = Sums {
            data: &mut scores,
            row: width,
            adds: false,
        };
        let some = q.positions(first..first + queries);
        left.pack(cpu, some, 0..queries, 0..dim);
        left.multiply(cpu, &packed.keys, 0, keys.clone(), into_scores);
        dispatch::run(Softmax {
            window: Window {
                mask,
                first_query: first,
                queries,
                first_key: keys.start,
                keys: keys.len(),
                width,
                scale: shape.scale,
                soft_cap: shape.soft_cap,
            },
            scores: &mut scores,
            probabilities: &mut probabilities,
            inverse: &mut inverse,
            logsumexp: &mut logsumexp[first..],
        });
        let probabilities = MatrixView::new(&probabilities, queries, keys.len(), width, 1);
        let into_sums = Sums {
            data: &mut sums,
            row: dim,
            adds: false,
        };
        left.pack(cpu, probabilities, 0..queries, 0..keys.len());
        left.multiply(cpu, &packed.values, keys.start, 0..dim, into_sums);
        out.store(first, &sums[..queries * dim], |row| inverse[row]);
    }
}
