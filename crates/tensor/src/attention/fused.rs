//! Attention in bf16 on processors with AVX512-BF16: libtorch's kernel computes its products in fp32 there.
//!
//! A few queries at a time meet all keys that they see, so their softmax needs no second pass; scores exist for one block of
//! queries of one head only, as in FlashAttention (Dao et al., arXiv 2205.14135). Backward computes them again. Products are
//! those of [`crate::matmul`]; what a query does not see is not computed.

mod backward;
mod forward;
mod heads;
mod rows;

use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::{AttentionOutput, AttentionSpec};
use crate::matmul;
use heads::Heads;
use rows::Mask;

/// As [`super::forward`]; `None` where these kernels do not apply.
pub(super) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: AttentionSpec,
) -> Option<AttentionOutput> {
    let shape = Shape::of(q, k, v, spec)?;
    let out = Tensor::empty(q.size(), (Kind::BFloat16, q.device()));
    let size = [shape.batch, shape.heads, shape.seq].map(|n| n as i64);
    let logsumexp = Tensor::empty(size, (Kind::Float, q.device()));
    let inputs = forward::Inputs {
        q: Heads::of(q)?,
        k: Heads::of(k)?,
        v: Heads::of(v)?,
        out: Heads::of(&out)?,
    };
    // SAFETY: the processor has the features (`Shape::of`); the heads are those of the shape; the results were made here.
    unsafe { forward::run(shape, inputs, &logsumexp) };
    Some(AttentionOutput { out, logsumexp })
}

/// As [`super::backward`]; `None` where these kernels do not apply.
pub(super) fn backward(
    d_out: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    saved: &AttentionOutput,
    spec: AttentionSpec,
) -> Option<(Tensor, Tensor, Tensor)> {
    let shape = Shape::of(q, k, v, spec)?;
    let plain = saved.logsumexp.kind() == Kind::Float && saved.logsumexp.is_contiguous();
    if !plain || d_out.size() != q.size() || saved.out.size() != q.size() {
        return None;
    }
    let like = |t: &Tensor| Tensor::empty(t.size(), (Kind::BFloat16, t.device()));
    let (d_q, d_k, d_v) = (like(q), like(k), like(v));
    let tensors = backward::Tensors {
        d_out: Heads::of(d_out)?,
        q: Heads::of(q)?,
        k: Heads::of(k)?,
        v: Heads::of(v)?,
        out: Heads::of(&saved.out)?,
        d_q: Heads::of(&d_q)?,
        d_k: Heads::of(&d_k)?,
        d_v: Heads::of(&d_v)?,
    };
    // SAFETY: as in `forward`.
    unsafe { backward::run(shape, tensors, &saved.logsumexp) };
    Some((d_q, d_k, d_v))
}

/// What is computed.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    seq: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    mask: Mask,
    scale: f32,
}

impl Shape {
    fn of(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec) -> Option<Self> {
        let (q_size, k_size) = (q.size(), k.size());
        let (&[batch, seq, heads, dim], &[_, _, kv_heads, _]) =
            (q_size.as_slice(), k_size.as_slice())
        else {
            return None;
        };
        let fits = matmul::suits(q)
            && k_size == [batch, seq, kv_heads, dim]
            && v.size() == k_size
            && q.numel() > 0
            && kv_heads > 0
            && heads % kv_heads == 0
            && spec.scale > 0.0;
        fits.then(|| Self {
            batch: batch as usize,
            seq: seq as usize,
            heads: heads as usize,
            kv_heads: kv_heads as usize,
            dim: dim as usize,
            mask: Mask {
                window: spec
                    .sliding_window
                    .map_or(usize::MAX, |w| w.max(1) as usize),
            },
            scale: spec.scale as f32,
        })
    }

    /// The key/value head of a query head.
    fn kv_of(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// Results of `work` for `count` heads of every batch row, batch row by batch row; by all threads.
    fn map<T: Send>(&self, count: usize, work: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
        let work = |index| work(index / count, index % count);
        let all = 0..self.batch * count;
        match rayon::current_num_threads() {
            1 => all.map(work).collect(),
            _ => all.into_par_iter().map(work).collect(),
        }
    }
}
