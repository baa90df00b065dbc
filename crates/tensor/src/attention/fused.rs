//! Attention in bf16 as kernels, on processors where libtorch's kernel computes its products in fp32.

use half::bf16;
use tandem_kernels::attention::{self, Gradients, Heads, Inputs, Saved, Spec};
use tandem_kernels::avx512_bf16::Avx512Bf16;
use tandem_torch::{Kind, Tensor};

use super::{AttentionOutput, AttentionSpec, Documents};
use crate::cpu::element::{is_plain, on_host, slice, slice_mut, span};
use crate::matmul;

/// As [`super::forward`]; `None` where these kernels do not apply.
pub(super) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: AttentionSpec,
    documents: Option<&Documents>,
) -> Option<AttentionOutput> {
    let (cpu, inputs, spec) = call(q, k, v, spec, documents)?;
    let out = Tensor::empty(q.size(), (Kind::BFloat16, q.device()));
    let logsumexp = Tensor::empty(logsumexp_size(q), (Kind::Float, q.device()));
    // SAFETY: the results were made here.
    let (outs, sums) = unsafe { (slice_mut::<bf16>(&out), slice_mut::<f32>(&logsumexp)) };
    attention::forward(cpu, inputs, spec, outs, sums);
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
    documents: Option<&Documents>,
) -> Option<(Tensor, Tensor, Tensor)> {
    let (cpu, inputs, spec) = call(q, k, v, spec, documents)?;
    let fits = is_plain::<f32>(&saved.logsumexp)
        && saved.logsumexp.size() == logsumexp_size(q)
        && d_out.size() == q.size()
        && saved.out.size() == q.size();
    if !fits {
        return None;
    }
    let (d_out, out) = (heads(d_out)?, heads(&saved.out)?);
    let logsumexp = slice::<f32>(&saved.logsumexp);
    let like = |t: &Tensor| Tensor::empty(t.size(), (Kind::BFloat16, t.device()));
    let (d_q, d_k, d_v) = (like(q), like(k), like(v));
    // SAFETY: the results were made here.
    let gradients = unsafe {
        Gradients {
            d_q: slice_mut::<bf16>(&d_q),
            d_k: slice_mut::<bf16>(&d_k),
            d_v: slice_mut::<bf16>(&d_v),
        }
    };
    attention::backward(
        cpu,
        inputs,
        spec,
        Saved { out, logsumexp },
        d_out,
        gradients,
    );
    Some((d_q, d_k, d_v))
}

/// What the kernels are called with, where they apply.
fn call<'a>(
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    spec: AttentionSpec,
    documents: Option<&'a Documents>,
) -> Option<(Avx512Bf16, Inputs<'a>, Spec)> {
    let cpu = matmul::instructions()?;
    let (&[batch, seq, count, dim], &[_, _, kv_count, _]) = (q.size(), k.size()) else {
        return None;
    };
    let kv_size = [batch, seq, kv_count, dim];
    let (scale, soft_cap) = (spec.scale as f32, spec.soft_cap.map(|cap| cap as f32));
    let fits = k.size() == kv_size
        && v.size() == kv_size
        && q.numel() > 0
        && kv_count > 0
        && count % kv_count == 0
        && scale > 0.0
        && soft_cap.is_none_or(|cap| cap > 0.0);
    if !fits {
        return None;
    }
    let inputs = Inputs {
        q: heads(q)?,
        k: heads(k)?,
        v: heads(v)?,
        documents: documents.map(Documents::of_position),
    };
    let window = spec.sliding_window.map(|window| window.max(1) as usize);
    let spec = Spec {
        scale,
        window,
        soft_cap,
    };
    Some((cpu, inputs, spec))
}

/// `None` where the tensor is not bf16 in host memory, or its rows are not plain.
fn heads(t: &Tensor) -> Option<Heads<'_>> {
    let size = <[i64; 4]>::try_from(t.size()).ok()?;
    let [batch, position, head, 1] = <[i64; 4]>::try_from(t.stride()).ok()? else {
        return None;
    };
    let suits = on_host(t) && t.kind() == Kind::BFloat16;
    let strides = [batch, position, head].map(|n| n as usize);
    suits.then(|| Heads::new(span::<bf16>(t), size.map(|n| n as usize), strides))
}

/// `[batch, heads, seq]`.
fn logsumexp_size(q: &Tensor) -> Vec<i64> {
    let size = q.size();
    vec![size[0], size[2], size[1]]
}
