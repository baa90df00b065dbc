//! Attention on CUDA. Half precision runs FlashAttention-2 (which knows GQA and sliding windows); fp32, for which
//! it has no kernel, runs the plain formula.

use tch::{Kind, Tensor};

use super::{AttentionOutput, AttentionSpec, reference};

pub(super) fn forward(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec) -> AttentionOutput {
    if q.kind() == Kind::Float {
        return reference::forward(q, k, v, spec);
    }
    let out = Tensor::empty(q.size(), (q.kind(), q.device()));
    let seq = q.size()[1];
    let logsumexp = Tensor::internal_flash_attention_forward_no_dropout_inplace(
        &out,
        q,
        k,
        v,
        None::<&Tensor>,
        None::<&Tensor>,
        seq,
        seq,
        0.0,
        true,
        false,
        spec.scale,
        window_left(spec),
        window_left(spec).map(|_| 0),
        None::<&Tensor>,
        None::<&Tensor>,
        None::<&Tensor>,
        None::<i64>,
    );
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
    if q.kind() == Kind::Float {
        return reference::backward(d_out, q, k, v, spec);
    }
    let seq = q.size()[1];
    // Without dropout the kernel reads neither random state; undefined tensors say so.
    let unused = Tensor::new();
    Tensor::internal_flash_attention_backward(
        d_out,
        q,
        k,
        v,
        &saved.out,
        &saved.logsumexp,
        &unused,
        &unused,
        seq,
        seq,
        0.0,
        true,
        &unused,
        &unused,
        spec.scale,
        window_left(spec),
        window_left(spec).map(|_| 0),
    )
}

/// FlashAttention counts the keys *before* the query; Hugging Face's window includes the query itself.
fn window_left(spec: AttentionSpec) -> Option<i64> {
    spec.sliding_window.map(|window| window - 1)
}
