//! Attention on CUDA. Half precision runs FlashAttention-2 (which knows GQA and sliding windows); fp32, for which
//! it has no kernel, and soft caps, which that kernel lacks, run the plain formula.

use tandem_torch::{Kind, Tensor, attention as libtorch};

use super::{AttentionOutput, AttentionSpec, reference};

pub(super) fn forward(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec) -> AttentionOutput {
    if by_formula(q, spec) {
        return reference::forward(q, k, v, spec);
    }
    let (out, logsumexp) = libtorch::cuda_forward(q, k, v, spec.scale, window_left(spec));
    AttentionOutput { out, logsumexp }
}

pub(super) fn backward(
    d_out: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    saved: &AttentionOutput,
    spec: AttentionSpec,
) -> (Tensor, Tensor, Tensor) {
    if by_formula(q, spec) {
        return reference::backward(d_out, q, k, v, spec);
    }
    let saved = libtorch::Saved {
        query: q,
        key: k,
        value: v,
        out: &saved.out,
        logsumexp: &saved.logsumexp,
    };
    libtorch::cuda_backward(d_out, saved, spec.scale, window_left(spec))
}

fn by_formula(q: &Tensor, spec: AttentionSpec) -> bool {
    q.kind() == Kind::Float || spec.soft_cap.is_some()
}

/// FlashAttention counts the keys *before* the query; Hugging Face's window includes the query itself.
fn window_left(spec: AttentionSpec) -> Option<i64> {
    spec.sliding_window.map(|window| window - 1)
}
