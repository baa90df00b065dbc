//! libtorch's fused attention: one kernel for the CPU, another for CUDA.

mod pretended;

use std::ptr::{null, null_mut};

use crate::abi::{Code, Handle};
use crate::error::{TorchError, expect};
use crate::library::torch;
use crate::recorder::{Action, Writes};
use crate::tensor::{Tensor, called, new_tensor};

/// FlashAttention on a GPU, for people.
const FORWARD: &str = "flash attention";

/// Its gradient.
const GRADIENT: &str = "flash attention's gradient";

/// Causal or masked attention on the CPU. `query` is `[batch, heads, seq, dim]`, `key` and `value` may have fewer heads;
/// without a `mask` (additive, of the kind of `query`) it is causal. Returns the output and the log-sum-exp of the scores.
#[track_caller]
pub fn cpu_forward(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    scale: f64,
) -> (Tensor, Tensor) {
    let mask_handle = mask.map(Tensor::handle);
    let (mut out, mut logsumexp) = (null_mut(), null_mut());
    // SAFETY: the handles are alive; optional arguments are pointers to one, or null.
    let code = unsafe {
        (torch().cpu._scaled_dot_product_flash_attention_for_cpu)(
            query.handle(),
            key.handle(),
            value.handle(),
            0.0,
            i32::from(mask.is_none()),
            optional(&mask_handle),
            &scale,
            &mut out,
            &mut logsumexp,
        )
    };
    expect(ran(code, "attention"));
    (Tensor::own(out), Tensor::own(logsumexp))
}

/// What the forward pass took and returned.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// As in the forward pass, as are the next two.
    pub query: &'a Tensor,
    /// Keys.
    pub key: &'a Tensor,
    /// Values.
    pub value: &'a Tensor,
    /// The forward pass's output.
    pub out: &'a Tensor,
    /// The forward pass's second output.
    pub logsumexp: &'a Tensor,
}

/// Gradients of [`cpu_forward`] with respect to query, key and value.
#[track_caller]
pub fn cpu_backward(
    d_out: &Tensor,
    saved: Saved<'_>,
    mask: Option<&Tensor>,
    scale: f64,
) -> (Tensor, Tensor, Tensor) {
    let mask_handle = mask.map(Tensor::handle);
    let mut gradients = [null_mut(); 3];
    let [d_query, d_key, d_value] = &mut gradients;
    // SAFETY: as in `cpu_forward`.
    let code = unsafe {
        (torch()
            .cpu
            ._scaled_dot_product_flash_attention_for_cpu_backward)(
            d_out.handle(),
            saved.query.handle(),
            saved.key.handle(),
            saved.value.handle(),
            saved.out.handle(),
            saved.logsumexp.handle(),
            0.0,
            i32::from(mask.is_none()),
            optional(&mask_handle),
            &scale,
            d_query,
            d_key,
            d_value,
        )
    };
    expect(ran(code, "attention's gradient"));
    let [d_query, d_key, d_value] = gradients.map(Tensor::own);
    (d_query, d_key, d_value)
}

/// What a query sees on CUDA besides being causal.
#[derive(Debug, Clone, Copy)]
pub struct Masked<'a> {
    /// Multiplies the scores.
    pub scale: f64,
    /// Keys before itself that a query sees at most.
    pub window_left: Option<i64>,
    /// Sequences of different lengths, one after another, instead of rows.
    pub documents: Option<Documents<'a>>,
}

/// Where sequences of different lengths lie.
#[derive(Debug, Clone, Copy)]
pub struct Documents<'a> {
    /// i32 `[documents + 1]`, on the device: where each begins, and where the last ends.
    pub bounds: &'a Tensor,
    /// Tokens of the longest.
    pub longest: i64,
}

/// Causal attention on CUDA, in half precision (FlashAttention-2). `query` is `[batch, seq, heads, dim]`, or, with documents,
/// `[tokens, heads, dim]`; `key` and `value` may have fewer heads. Returns the output and the log-sum-exp.
///
/// The form with documents was compiled and never run: no machine with such a device was at hand.
#[track_caller]
pub fn cuda_forward(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    masked: Masked<'_>,
) -> (Tensor, Tensor) {
    if query.pretends() {
        return pretended::forward(query, key, value, masked);
    }
    let Masked {
        scale, documents, ..
    } = masked;
    let (left, right) = window(masked.window_left);
    let bounds = documents.map(|documents| documents.bounds.handle());
    let seq = documents.map_or_else(|| query.size()[1], |documents| documents.longest);
    let mut results = [null_mut(); 5];
    let [out, logsumexp, random_state, unused, debug_mask] = &mut results;
    // SAFETY: as in `cpu_forward`.
    let code = unsafe {
        let functions = &expect(torch().cuda()).functions;
        (functions.aoti_torch_cuda__flash_attention_forward)(
            query.handle(),
            key.handle(),
            value.handle(),
            optional(&bounds),
            optional(&bounds),
            seq,
            seq,
            0.0,
            1,
            0,
            &scale,
            optional(&left),
            optional(&right),
            null(),
            null(),
            out,
            logsumexp,
            random_state,
            unused,
            debug_mask,
        )
    };
    expect(ran(code, FORWARD));
    // The last three only matter with dropout or for debugging; they are released here.
    let [out, logsumexp, _, _, _] = results.map(Tensor::own);
    (out, logsumexp)
}

/// Gradients of [`cuda_forward`] with respect to query, key and value.
#[track_caller]
pub fn cuda_backward(
    d_out: &Tensor,
    saved: Saved<'_>,
    masked: Masked<'_>,
) -> (Tensor, Tensor, Tensor) {
    if d_out.pretends() {
        return pretended::backward(d_out, saved, masked);
    }
    let Masked {
        scale, documents, ..
    } = masked;
    let (left, right) = window(masked.window_left);
    let seq = documents.map_or_else(|| saved.query.size()[1], |documents| documents.longest);
    // Without dropout the kernel reads no random state, and without packed sequences no starts; undefined tensors say so.
    let undefined = undefined();
    let bounds = documents.map_or(&undefined, |documents| documents.bounds);
    let mut gradients = [null_mut(); 3];
    let [d_query, d_key, d_value] = &mut gradients;
    // SAFETY: as in `cpu_forward`.
    let code = unsafe {
        let functions = &expect(torch().cuda()).functions;
        (functions.aoti_torch_cuda__flash_attention_backward)(
            d_out.handle(),
            saved.query.handle(),
            saved.key.handle(),
            saved.value.handle(),
            saved.out.handle(),
            saved.logsumexp.handle(),
            bounds.handle(),
            bounds.handle(),
            seq,
            seq,
            0.0,
            1,
            undefined.handle(),
            undefined.handle(),
            &scale,
            optional(&left),
            optional(&right),
            d_query,
            d_key,
            d_value,
        )
    };
    expect(ran(code, GRADIENT));
    let [d_query, d_key, d_value] = gradients.map(Tensor::own);
    (d_query, d_key, d_value)
}

/// The outcome of an operator with new tensors.
fn ran(code: Code, operator: &str) -> Result<(), TorchError> {
    called(code, operator, Writes::Results, || Action::Compute)
}

/// A causal window has nothing to the right.
fn window(left: Option<i64>) -> (Option<i64>, Option<i64>) {
    (left, left.map(|_| 0))
}

/// How the C functions take what may be missing: a pointer to it, or null.
fn optional<T>(value: &Option<T>) -> *const T {
    value.as_ref().map_or(null(), std::ptr::from_ref)
}

fn undefined() -> Tensor {
    expect(new_tensor("an undefined tensor", |out: *mut Handle| {
        // SAFETY: `out` is writable.
        unsafe { (torch().functions.aoti_torch_new_uninitialized_tensor)(out) }
    }))
}
