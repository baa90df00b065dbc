//! Attention as the formula says it, in fp32 or fp64: the yardstick of the tests, and the path of what fused kernels lack: fp32 on
//! CUDA (whose flash kernels take half precision only), soft caps. Memory grows with the square of the sequence.

use tandem_torch::{Device, Kind, Tensor};

use super::{AttentionOutput, AttentionSpec, Documents};

/// As [`super::forward`]. `logsumexp` is `[batch, heads, seq]`.
pub(super) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: AttentionSpec,
    documents: Option<&Documents>,
) -> AttentionOutput {
    let kind = q.kind();
    let (q, k, v) = expand(q, k, v);
    let (scores, _) = scores(&q, &k, spec, documents);
    let out = scores.softmax(-1, scores.kind()).matmul(&v).transpose(1, 2);
    AttentionOutput {
        out: out.to_kind(kind),
        logsumexp: scores.logsumexp(&[-1], false),
    }
}

/// As [`super::backward`]; recomputes the probabilities.
pub(super) fn backward(
    d_out: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: AttentionSpec,
    documents: Option<&Documents>,
) -> (Tensor, Tensor, Tensor) {
    let (kind, kv_heads) = (q.kind(), k.size()[2]);
    let (q, k, v) = expand(q, k, v);
    let (scores, slope) = scores(&q, &k, spec, documents);
    let probabilities = scores.softmax(-1, scores.kind());
    let d_out = d_out.to_kind(q.kind()).transpose(1, 2);
    let d_v = probabilities.transpose(-2, -1).matmul(&d_out);
    let d_probabilities = d_out.matmul(&v.transpose(-2, -1));
    let row = (&d_probabilities * &probabilities).sum_dims(&[-1], true, q.kind());
    let d_scores = (d_probabilities - row) * probabilities * spec.scale;
    let d_scores = match slope {
        Some(slope) => d_scores * slope,
        None => d_scores,
    };
    let d_q = d_scores.matmul(&k).transpose(1, 2).to_kind(kind);
    let d_k = d_scores.transpose(-2, -1).matmul(&q);
    let per_key = |d: &Tensor| collapse(d, kv_heads).to_kind(kind);
    (d_q, per_key(&d_k), per_key(&d_v))
}

/// Additive fp32 mask `[seq, seq]`: 0 where query row may see key column, -inf elsewhere.
pub(super) fn causal_mask(seq: i64, window: Option<i64>, device: Device) -> Tensor {
    let full = Tensor::ones([seq, seq], (Kind::Bool, device));
    let future = full.triu(1);
    let hidden = match window {
        Some(window) => future.logical_or(&full.tril(-window)),
        None => future,
    };
    Tensor::zeros([seq, seq], (Kind::Float, device)).masked_fill(&hidden, f64::NEG_INFINITY)
}

/// Additive fp32 mask `[batch, 1, seq, seq]`: 0 where both are of one document, -inf elsewhere.
fn documents_mask(documents: &Documents, device: Device) -> Tensor {
    let [batch, seq] = documents.size();
    // Positions are exact in fp32.
    let starts: Vec<f32> = documents
        .of_position()
        .iter()
        .map(|&start| start as f32)
        .collect();
    let starts = Tensor::from_slice(&starts).to_device(device);
    let apart = starts.view([batch, 1, seq, 1]) - starts.view([batch, 1, 1, seq]);
    let other = apart.lt(0.0).logical_or(&apart.ge(1.0));
    Tensor::zeros([batch, 1, seq, seq], (Kind::Float, device))
        .masked_fill(&other, f64::NEG_INFINITY)
}

/// Masked scores; and, where they are bent by a soft cap, the derivative of the bend.
fn scores(
    q: &Tensor,
    k: &Tensor,
    spec: AttentionSpec,
    documents: Option<&Documents>,
) -> (Tensor, Option<Tensor>) {
    let mask = causal_mask(q.size()[2], spec.sliding_window, q.device());
    let mask = match documents {
        Some(documents) => mask + documents_mask(documents, q.device()),
        None => mask,
    };
    let scores = q.matmul(&k.transpose(-2, -1)) * spec.scale;
    let Some(cap) = spec.soft_cap else {
        return (scores + mask, None);
    };
    let bent = (scores * (1.0 / cap)).tanh();
    let slope = &bent * &bent * -1.0 + 1.0;
    (bent * cap + mask, Some(slope))
}

/// Heads first, in fp32 at least, and every key/value head repeated for the query heads that share it.
fn expand(q: &Tensor, k: &Tensor, v: &Tensor) -> (Tensor, Tensor, Tensor) {
    let group = q.size()[2] / k.size()[2];
    let kind = match q.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let first = |t: &Tensor| t.to_kind(kind).transpose(1, 2);
    let repeat = |t: &Tensor| first(t).repeat_interleave(group, 1);
    (first(q), repeat(k), repeat(v))
}

/// Sums the gradients of the query heads that share a key/value head.
fn collapse(d: &Tensor, kv_heads: i64) -> Tensor {
    let size = d.size();
    d.view([size[0], kv_heads, size[1] / kv_heads, size[2], size[3]])
        .sum_dims(&[2], false, d.kind())
        .transpose(1, 2)
}
