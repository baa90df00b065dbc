//! Causal grouped-query attention, forward and backward (FlashAttention: Dao, arXiv 2307.08691; GQA: Ainslie et al., arXiv
//! 2305.13245): through libtorch's fused kernels, or this project's own where those are faster.

pub use documents::Documents;
use tandem_torch::{Kind, Tensor, attention as libtorch};

/// What a query may see besides being causal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Multiplies the scores before the softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// A query sees this many keys at most, itself included.
    pub sliding_window: Option<i64>,
    /// Scores are bent to at most this much: `cap * tanh(score / cap)`, after the scale and before the mask; more than 0
    /// (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f64>,
}

/// The kernel's outputs.
#[derive(Debug)]
pub struct AttentionOutput {
    /// `[batch, seq, heads, head_dim]`.
    pub out: Tensor,
    /// fp32 log-sum-exp of the scores, `[batch, heads, seq]`; with documents on CUDA `[heads, batch * seq]`.
    pub logsumexp: Tensor,
}

/// `softmax(scale * q k^T + mask) v`, with scores that are bent where there is a soft cap.
///
/// `q` is `[batch, seq, heads, head_dim]`, `k` and `v` are `[batch, seq, kv_heads, head_dim]` with `heads` a multiple
/// of `kv_heads`; views with any strides whose last is 1. With `documents`, a query sees its own document only.
pub fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: AttentionSpec,
    documents: Option<&Documents>,
) -> AttentionOutput {
    check(q, documents);
    if q.device().is_cuda() {
        return cuda::forward(q, k, v, spec, documents);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(output) = fused::forward(q, k, v, spec, documents) {
        return output;
    }
    match documents {
        Some(documents) => each_document::forward(q, k, v, spec, documents),
        None => whole_rows(q, k, v, spec),
    }
}

/// Whether a soft cap on scores of this kind is a part of a kernel of the CPU's. Elsewhere all scores exist at once, in fp32.
pub fn bends_in_kernel(kind: Kind) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        kind == Kind::BFloat16 && crate::matmul::instructions().is_some()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _elsewhere = kind;
        false
    }
}

/// Gradients of [`forward`] with respect to `q`, `k` and `v`, in their shapes.
pub fn backward(
    d_out: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    saved: &AttentionOutput,
    spec: AttentionSpec,
    documents: Option<&Documents>,
) -> (Tensor, Tensor, Tensor) {
    check(q, documents);
    if q.device().is_cuda() {
        return cuda::backward(d_out, q, k, v, saved, spec, documents);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(gradients) = fused::backward(d_out, q, k, v, saved, spec, documents) {
        return gradients;
    }
    match documents {
        Some(documents) => each_document::backward(d_out, q, k, v, saved, spec, documents),
        None => whole_rows_backward(d_out, q, k, v, saved, spec),
    }
}

/// # Panics
/// When documents are those of other rows.
fn check(q: &Tensor, documents: Option<&Documents>) {
    if let Some(documents) = documents {
        assert_eq!(q.size()[..2], documents.size(), "rows and their documents");
    }
}

/// On the CPU, through libtorch: every row is one document.
fn whole_rows(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec) -> AttentionOutput {
    if spec.soft_cap.is_some() {
        // libtorch's kernel knows no soft cap.
        return reference::forward(q, k, v, spec, None);
    }
    let (q, k, v) = (heads_first(q), heads_first(k), heads_first(v));
    let mask = window_mask(&q, spec);
    let (out, logsumexp) = libtorch::cpu_forward(&q, &k, &v, mask.as_ref(), spec.scale);
    AttentionOutput {
        out: out.transpose(1, 2),
        logsumexp,
    }
}

fn whole_rows_backward(
    d_out: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    saved: &AttentionOutput,
    spec: AttentionSpec,
) -> (Tensor, Tensor, Tensor) {
    if spec.soft_cap.is_some() {
        return reference::backward(d_out, q, k, v, spec, None);
    }
    let (q, k, v) = (heads_first(q), heads_first(k), heads_first(v));
    let (d_out, out) = (heads_first(d_out), heads_first(&saved.out));
    let saved = libtorch::Saved {
        query: &q,
        key: &k,
        value: &v,
        out: &out,
        logsumexp: &saved.logsumexp,
    };
    let mask = window_mask(&q, spec);
    let (d_q, d_k, d_v) = libtorch::cpu_backward(&d_out, saved, mask.as_ref(), spec.scale);
    (heads_first(&d_q), heads_first(&d_k), heads_first(&d_v))
}

/// Swaps the sequence and head dimensions (its own inverse); a view.
fn heads_first(x: &Tensor) -> Tensor {
    x.transpose(1, 2)
}

/// The additive mask of a sliding window, or none where plain causal masking says the same.
fn window_mask(q: &Tensor, spec: AttentionSpec) -> Option<Tensor> {
    let seq = q.size()[2];
    let window = spec.sliding_window.filter(|&window| window < seq)?;
    Some(reference::causal_mask(seq, Some(window), q.device()).to_kind(q.kind()))
}

mod cuda;
mod documents;
mod each_document;
#[cfg(target_arch = "x86_64")]
mod fused;
mod reference;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, dot, norm, numeric_gradient, randn};
    use tandem_torch::Device;

    /// Rows of documents of these lengths, again and again; every row begins with another one.
    fn documents(batch: i64, seq: i64, lengths: &[u32]) -> Documents {
        let row = |row: i64| {
            let lengths = lengths.iter().cycle().skip(row as usize);
            let starts = lengths.scan(0, |next, len| {
                let start = *next;
                *next += len;
                Some(start)
            });
            starts.take_while(|&start| i64::from(start) < seq).collect()
        };
        let starts: Vec<Vec<u32>> = (0..batch).map(row).collect();
        Documents::new(starts, seq as usize, Device::Cpu).expect("several documents")
    }

    /// Packed equals unpacked, whatever the kernel.
    #[test]
    fn documents_in_a_row_are_as_if_each_were_alone() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let spec = AttentionSpec {
                scale: 0.25,
                sliding_window: Some(20),
                soft_cap: None,
            };
            let (batch, seq, heads, kv_heads, dim) = (2, 90, 4, 2, 16);
            let documents = documents(batch, seq, &[33, 1, 40, 7]);
            let random = |heads, seed| randn(&[batch, seq, heads, dim], seed).to_kind(kind);
            let (q, k, v) = (random(heads, 1), random(kv_heads, 2), random(kv_heads, 3));
            let d_out = random(heads, 4);
            let saved = forward(&q, &k, &v, spec, Some(&documents));
            let (d_q, d_k, d_v) = backward(&d_out, &q, &k, &v, &saved, spec, Some(&documents));
            for (row, start, len) in documents.each() {
                let alone = |t: &Tensor| {
                    let row = t.narrow(0, row as i64, 1);
                    row.narrow(1, start as i64, len as i64).contiguous()
                };
                let [qa, ka, va, da] = [&q, &k, &v, &d_out].map(alone);
                let expected = forward(&qa, &ka, &va, spec, None);
                let (dqa, dka, dva) = backward(&da, &qa, &ka, &va, &expected, spec, None);
                let label = format!("{kind:?}, row {row}, {len} tokens at {start}");
                for (name, found, expected) in [
                    ("out", &saved.out, &expected.out),
                    ("d_q", &d_q, &dqa),
                    ("d_k", &d_k, &dka),
                    ("d_v", &d_v, &dva),
                ] {
                    let (found, expected) = (
                        alone(found).to_kind(Kind::Double),
                        expected.to_kind(Kind::Double),
                    );
                    let tolerance = if kind == Kind::Float { 1e-6 } else { 1e-2 };
                    let off = norm(&(&found - &expected));
                    assert!(
                        off <= tolerance * (norm(&expected) + 1.0),
                        "{name}, {label}: {off}"
                    );
                }
            }
        }
    }

    /// What the other tests are held against.
    #[test]
    fn the_formulas_backward_is_the_derivative_of_its_forward() {
        let documents = documents(2, 5, &[1, 3]);
        let documents = Some(&documents);
        for (sliding_window, soft_cap, documents) in [
            (None, None, None),
            (Some(2), None, None),
            (Some(3), Some(0.8), None),
            (None, None, documents),
            (Some(2), Some(0.8), documents),
        ] {
            let spec = AttentionSpec {
                scale: 0.7,
                sliding_window,
                soft_cap,
            };
            let double = |shape: &[i64], seed| randn(shape, seed).to_kind(Kind::Double);
            let q = double(&[2, 5, 4, 3], 1);
            let (k, v) = (double(&[2, 5, 2, 3], 2), double(&[2, 5, 2, 3], 3));
            let d_out = double(&[2, 5, 4, 3], 4);
            let (d_q, d_k, d_v) = reference::backward(&d_out, &q, &k, &v, spec, documents);
            let along = |q: &Tensor, k: &Tensor, v: &Tensor| {
                dot(&reference::forward(q, k, v, spec, documents).out, &d_out)
            };
            let label = format!("{spec:?}");
            for (name, found, expected) in [
                ("d_q", d_q, numeric_gradient(&q, |q| along(q, &k, &v))),
                ("d_k", d_k, numeric_gradient(&k, |k| along(&q, k, &v))),
                ("d_v", d_v, numeric_gradient(&v, |v| along(&q, &k, v))),
            ] {
                assert_close(&format!("{name}, {label}"), &found, &expected, 1e-8);
            }
        }
    }

    /// The fused kernels against plain softmax attention in fp64.
    #[test]
    fn matches_the_formula_with_gqa_and_sliding_windows() {
        for (heads, kv_heads) in [(4, 4), (6, 2), (5, 1)] {
            let (batch, seq, dim) = (2, 40, 16);
            let documents = documents(batch, seq, &[1, 6, 13, 1]);
            let documents = Some(&documents);
            for (sliding_window, soft_cap, documents) in [
                (None, None, None),
                (Some(1), None, None),
                (Some(7), None, None),
                (Some(64), None, None),
                (Some(7), Some(0.5), None),
                (None, None, documents),
                (Some(7), None, documents),
                (None, Some(0.5), documents),
            ] {
                let spec = AttentionSpec {
                    scale: 0.25,
                    sliding_window,
                    soft_cap,
                };
                let q = randn(&[batch, seq, heads, dim], 1);
                let k = randn(&[batch, seq, kv_heads, dim], 2);
                let v = randn(&[batch, seq, kv_heads, dim], 3);
                let d_out = randn(&[batch, seq, heads, dim], 4);
                let saved = forward(&q, &k, &v, spec, documents);
                let (d_q, d_k, d_v) = backward(&d_out, &q, &k, &v, &saved, spec, documents);

                let [qa, ka, va, da] = [&q, &k, &v, &d_out].map(|t| t.to_kind(Kind::Double));
                let expected = reference::forward(&qa, &ka, &va, spec, documents);
                let (dqa, dka, dva) = reference::backward(&da, &qa, &ka, &va, spec, documents);
                let label = format!(
                    "{heads}/{kv_heads} heads, {spec:?}, documents: {}",
                    documents.is_some()
                );
                assert_close(&format!("out, {label}"), &saved.out, &expected.out, 1e-5);
                assert_close(&format!("d_q, {label}"), &d_q, &dqa, 2e-5);
                assert_close(&format!("d_k, {label}"), &d_k, &dka, 2e-5);
                assert_close(&format!("d_v, {label}"), &d_v, &dva, 2e-5);
            }
        }
    }

    /// bf16 (on some processors this project's own kernels) against fp64 arithmetic with the same rounded inputs, which are
    /// views as q|k|v are: sizes around tiles and blocks, odd ones, windows that end within them.
    #[test]
    fn bf16_matches_fp64_at_all_sizes() {
        let shapes = [
            (1, 1, 1, 1, 8),
            (2, 13, 2, 2, 16),
            (1, 15, 3, 1, 33),
            (2, 40, 6, 2, 64),
            (1, 112, 4, 2, 64),
            (1, 130, 2, 1, 128),
            (1, 261, 7, 1, 64),
        ];
        for (batch, seq, heads, kv_heads, dim) in shapes {
            // In a row of one token there is one document.
            let short = (seq > 1).then(|| documents(batch, seq, &[5, 1, 1, 17, 2, 40]));
            let long = (seq > 200).then(|| documents(batch, seq, &[150, 1, 120]));
            for (sliding_window, soft_cap, documents) in [
                (None, None, None),
                (Some(1), None, None),
                (Some(33), None, None),
                (Some(100), None, None),
                (None, Some(0.7), None),
                (Some(33), Some(50.0), None),
                (None, None, short.as_ref()),
                (Some(9), Some(0.7), short.as_ref()),
                (Some(33), None, long.as_ref()),
            ] {
                let spec = AttentionSpec {
                    scale: 1.0 / (dim as f64).sqrt(),
                    sliding_window,
                    soft_cap,
                };
                let width = (heads + 2 * kv_heads) * dim;
                let qkv = (randn(&[batch, seq, width], 1) * 1.5).to_kind(Kind::BFloat16);
                let part = |start: i64, heads: i64| {
                    let part = qkv.narrow(2, start * dim, heads * dim);
                    part.view([batch, seq, heads, dim])
                };
                let (q, k, v) = (
                    part(0, heads),
                    part(heads, kv_heads),
                    part(heads + kv_heads, kv_heads),
                );
                let d_out = randn(&[batch, seq, heads, dim], 2).to_kind(Kind::BFloat16);
                let saved = forward(&q, &k, &v, spec, documents);
                let (d_q, d_k, d_v) = backward(&d_out, &q, &k, &v, &saved, spec, documents);

                let [qa, ka, va, da] = [&q, &k, &v, &d_out].map(|t| t.to_kind(Kind::Double));
                let expected = reference::forward(&qa, &ka, &va, spec, documents);
                let (dqa, dka, dva) = reference::backward(&da, &qa, &ka, &va, spec, documents);
                let label = format!("{batch} x {seq}, {heads}/{kv_heads} heads of {dim}, {spec:?}");
                for (name, found, expected) in [
                    ("out", &saved.out, expected.out),
                    ("logsumexp", &saved.logsumexp, expected.logsumexp),
                    ("d_q", &d_q, dqa),
                    ("d_k", &d_k, dka),
                    ("d_v", &d_v, dva),
                ] {
                    let off = norm(&(found.to_kind(Kind::Double) - &expected));
                    // Some gradients are zero exactly, up to rounding.
                    let size = norm(&expected) + 0.1 * (expected.numel() as f64).sqrt();
                    assert!(off <= 6e-3 * size, "{name}, {label}: {off} of {size}");
                }
            }
        }
    }

    /// The explicit backward that CUDA uses in fp32 runs here on the CPU.
    #[test]
    fn the_reference_backward_matches_the_fused_one() {
        let spec = AttentionSpec {
            scale: 0.3,
            sliding_window: Some(9),
            soft_cap: None,
        };
        let q = randn(&[2, 20, 6, 8], 1);
        let k = randn(&[2, 20, 3, 8], 2);
        let v = randn(&[2, 20, 3, 8], 3);
        let d_out = randn(&[2, 20, 6, 8], 4);
        let saved = forward(&q, &k, &v, spec, None);
        let fused = backward(&d_out, &q, &k, &v, &saved, spec, None);
        let plain = reference::backward(&d_out, &q, &k, &v, spec, None);
        assert_close("d_q", &plain.0, &fused.0, 2e-5);
        assert_close("d_k", &plain.1, &fused.1, 2e-5);
        assert_close("d_v", &plain.2, &fused.2, 2e-5);
    }
}
