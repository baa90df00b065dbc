//! Attention with documents where a kernel knows none: document by document, so that nothing is computed that is not seen.

use tandem_torch::{Kind, Tensor};

use super::{AttentionOutput, AttentionSpec, Documents, whole_rows, whole_rows_backward};

/// As [`super::forward`], on the CPU.
pub(super) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: AttentionSpec,
    documents: &Documents,
) -> AttentionOutput {
    let size = q.size();
    let sums = match q.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let whole = AttentionOutput {
        out: Tensor::empty(size, (q.kind(), q.device())),
        logsumexp: Tensor::empty([size[0], size[2], size[1]], (sums, q.device())),
    };
    for place in documents.each() {
        let [q, k, v] = [q, k, v].map(|t| part(t, 1, place));
        let one = whole_rows(&q, &k, &v, spec);
        part(&whole.out, 1, place).copy_(&one.out);
        part(&whole.logsumexp, 2, place).copy_(&one.logsumexp);
    }
    whole
}

/// As [`super::backward`], on the CPU.
pub(super) fn backward(
    d_out: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    saved: &AttentionOutput,
    spec: AttentionSpec,
    documents: &Documents,
) -> (Tensor, Tensor, Tensor) {
    let like = |t: &Tensor| Tensor::empty(t.size(), (t.kind(), t.device()));
    let (d_q, d_k, d_v) = (like(q), like(k), like(v));
    for place in documents.each() {
        let [d_out, q, k, v] = [d_out, q, k, v].map(|t| part(t, 1, place));
        let saved = AttentionOutput {
            out: part(&saved.out, 1, place),
            logsumexp: part(&saved.logsumexp, 2, place).contiguous(),
        };
        let (one_q, one_k, one_v) = whole_rows_backward(&d_out, &q, &k, &v, &saved, spec);
        for (whole, one) in [(&d_q, one_q), (&d_k, one_k), (&d_v, one_v)] {
            part(whole, 1, place).copy_(&one);
        }
    }
    (d_q, d_k, d_v)
}

/// One document of a tensor whose first dimension are rows, and which has positions along `dim`; a view.
fn part(t: &Tensor, dim: i64, (row, start, len): (usize, usize, usize)) -> Tensor {
    t.narrow(0, row as i64, 1)
        .narrow(dim, start as i64, len as i64)
}
