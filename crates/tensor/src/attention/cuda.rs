//! Attention on CUDA. Half precision runs FlashAttention-2 (which knows GQA, sliding windows, and documents as sequences of
//! different lengths); fp32, for which it has no kernel, and soft caps, which that kernel lacks, run the plain formula.

use tandem_torch::attention::{Documents as Lengths, Masked, Saved};
use tandem_torch::{Kind, Tensor, attention as libtorch};

use super::{AttentionOutput, AttentionSpec, Documents, reference};

pub(super) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: AttentionSpec,
    documents: Option<&Documents>,
) -> AttentionOutput {
    if by_formula(q, spec) {
        return reference::forward(q, k, v, spec, documents);
    }
    let Some(lengths) = lengths(documents) else {
        let (out, logsumexp) = libtorch::cuda_forward(q, k, v, masked(spec, None));
        return AttentionOutput { out, logsumexp };
    };
    let [joined_q, joined_k, joined_v] = [q, k, v].map(joined);
    let (out, logsumexp) =
        libtorch::cuda_forward(&joined_q, &joined_k, &joined_v, masked(spec, Some(lengths)));
    AttentionOutput {
        out: out.view(q.size()),
        logsumexp,
    }
}

pub(super) fn backward(
    d_out: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    saved: &AttentionOutput,
    spec: AttentionSpec,
    documents: Option<&Documents>,
) -> (Tensor, Tensor, Tensor) {
    if by_formula(q, spec) {
        return reference::backward(d_out, q, k, v, spec, documents);
    }
    let Some(lengths) = lengths(documents) else {
        let saved = Saved {
            query: q,
            key: k,
            value: v,
            out: &saved.out,
            logsumexp: &saved.logsumexp,
        };
        return libtorch::cuda_backward(d_out, saved, masked(spec, None));
    };
    let [d_out, joined_q, joined_k, joined_v, out] = [d_out, q, k, v, &saved.out].map(joined);
    let saved = Saved {
        query: &joined_q,
        key: &joined_k,
        value: &joined_v,
        out: &out,
        logsumexp: &saved.logsumexp,
    };
    let (d_q, d_k, d_v) = libtorch::cuda_backward(&d_out, saved, masked(spec, Some(lengths)));
    (d_q.view(q.size()), d_k.view(k.size()), d_v.view(v.size()))
}

fn by_formula(q: &Tensor, spec: AttentionSpec) -> bool {
    q.kind() == Kind::Float || spec.soft_cap.is_some()
}

/// `[batch, seq, heads, head_dim]` as `[batch * seq, heads, head_dim]`: rows one after another.
fn joined(t: &Tensor) -> Tensor {
    let size = t.size();
    t.reshape([size[0] * size[1], size[2], size[3]])
}

fn lengths(documents: Option<&Documents>) -> Option<Lengths<'_>> {
    let documents = documents?;
    Some(Lengths {
        bounds: documents.bounds()?,
        longest: documents.longest(),
    })
}

/// FlashAttention counts the keys *before* the query; Hugging Face's window includes the query itself.
fn masked(spec: AttentionSpec, documents: Option<Lengths<'_>>) -> Masked<'_> {
    Masked {
        scale: spec.scale,
        window_left: spec.sliding_window.map(|window| window - 1),
        documents,
    }
}
