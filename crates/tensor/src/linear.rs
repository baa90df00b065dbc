//! Matrix products of a linear layer: forward, input gradient, and weight gradient into an fp32 buffer.
//!
//! Weights keep Hugging Face's `[out, in]` layout.

pub mod aten;
mod fused;

use std::ops::Range;

use tandem_kernels::Accumulate;
use tandem_torch::Tensor;

use crate::matmul::{self, Plus};

/// `x [tokens, in] . weight^T [in, out] (+ bias [out])`, in the kind of `x`.
///
/// A weight of another kind is cast first: that is autocast, where the stored weight is fp32.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    adapted_forward(x, weight, bias, &[])
}

/// [`forward`] without a bias, into `out [tokens, out]`, which is contiguous.
pub fn forward_into(out: &Tensor, x: &Tensor, weight: &Tensor) {
    multiply_into(out, x, &weight.to_kind(x.kind()).tr());
}

/// Gradient with respect to the input: `d_y [tokens, out] . weight [out, in]`, in the kind of `d_y`.
pub fn backward_input(d_y: &Tensor, weight: &Tensor) -> Tensor {
    multiply(d_y, &weight.to_kind(d_y.kind()), None, &[])
}

/// [`backward_input`] into `d_x [tokens, in]`, which is contiguous.
pub fn backward_input_into(d_x: &Tensor, d_y: &Tensor, weight: &Tensor) {
    multiply_into(d_x, d_y, &weight.to_kind(d_y.kind()));
}

/// What a matrix of low rank adds to some outputs of another one.
#[derive(Debug)]
pub struct LowRank<'a> {
    /// What it makes of the input: `[tokens, r]`.
    pub hidden: Tensor,
    /// What it makes of that: `[outputs, r]`.
    pub weight: &'a Tensor,
    /// The outputs that it adds to; those of several are apart and in ascending order.
    pub outputs: Range<usize>,
}

/// [`forward`] plus `hidden [tokens, r] . weight^T [r, outputs]` for each of `adapters`.
///
/// Where the product is this project's own, that is a part of its sums: not rounded apart, and no other pass over the result.
pub fn adapted_forward(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    adapters: &[LowRank<'_>],
) -> Tensor {
    let plus = |adapter: &LowRank<'_>| Plus {
        a: adapter.hidden.shallow_clone(),
        b: adapter.weight.to_kind(x.kind()).tr(),
        columns: adapter.outputs.clone(),
    };
    let plus: Vec<Plus> = adapters.iter().map(plus).collect();
    multiply(x, &weight.to_kind(x.kind()).tr(), bias, &plus)
}

/// [`backward_input`] plus `d_hidden [tokens, r] . a [r, in]`, in one product as in [`adapted_forward`].
pub fn adapted_backward_input(
    d_y: &Tensor,
    weight: &Tensor,
    d_hidden: &Tensor,
    a: &Tensor,
) -> Tensor {
    let plus = Plus {
        a: d_hidden.shallow_clone(),
        b: a.to_kind(d_y.kind()),
        columns: 0..a.size()[1] as usize,
    };
    multiply(d_y, &weight.to_kind(d_y.kind()), None, &[plus])
}

/// `a [m, k] . b [k, n] (+ bias [n]) + plus`
fn multiply(a: &Tensor, b: &Tensor, bias: Option<&Tensor>, plus: &[Plus]) -> Tensor {
    if matmul::suits(a) {
        let out = Tensor::empty([a.size()[0], b.size()[1]], (a.kind(), a.device()));
        if matmul::product_and(&out, a, b, bias, plus, Accumulate::First).is_some() {
            return out;
        }
    }
    let out = match bias {
        Some(bias) => bias.to_kind(a.kind()).addmm(a, b),
        None => a.mm(b),
    };
    for Plus { a, b, columns } in plus {
        let out = out.narrow(1, columns.start as i64, columns.len() as i64);
        out.addmm_(a, b);
    }
    out
}

fn multiply_into(out: &Tensor, a: &Tensor, b: &Tensor) {
    if matmul::product(out, a, b, None, Accumulate::First).is_none() {
        a.mm_out(out, b);
    }
}

/// Adds `d_y^T [out, tokens] . x [tokens, in]` to the fp32 gradient `[out, in]`.
pub fn backward_weight(d_weight: &Tensor, d_y: &Tensor, x: &Tensor, accumulate: Accumulate) {
    let d_y_t = d_y.tr();
    if matmul::product(d_weight, &d_y_t, x, None, accumulate).is_some() {
        return;
    }
    if d_y.kind() == d_weight.kind() {
        // Writes straight into the flat gradient buffer, without a temporary.
        match accumulate {
            Accumulate::First => d_y_t.mm_out(d_weight, x),
            Accumulate::Add => d_weight.addmm_(&d_y_t, x),
        }
    } else if accumulate == Accumulate::Add || !d_y_t.mm_out_fp32(d_weight, x) {
        backward_weight_in_blocks(d_weight, d_y, x, accumulate);
    }
}

/// Bytes of a product that are converted to fp32 at a time: they are still in the cache then, and a block is never so
/// large that it comes fresh from the system.
const BLOCK_BYTES: i64 = 8 << 20;

/// Blocks have a multiple of this many rows, so that the kernels see whole tiles.
const BLOCK_ALIGN: i64 = 64;

/// The product in the kind of its operands, a block of rows after the other, each converted to fp32 at once.
fn backward_weight_in_blocks(d_weight: &Tensor, d_y: &Tensor, x: &Tensor, accumulate: Accumulate) {
    let (rows, columns) = (d_weight.size()[0], d_weight.size()[1]);
    let row_bytes = (columns * x.kind().elt_size_in_bytes() as i64).max(1);
    let blocks = (rows * row_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    let block = (rows + blocks - 1) / blocks.max(1);
    let block = (block + BLOCK_ALIGN - 1) / BLOCK_ALIGN * BLOCK_ALIGN;
    let product = Tensor::empty([block.min(rows), columns], (x.kind(), x.device()));
    for start in (0..rows).step_by(block.max(1) as usize) {
        let len = block.min(rows - start);
        let product = product.narrow(0, 0, len);
        d_y.narrow(1, start, len).tr().mm_out(&product, x);
        store(&d_weight.narrow(0, start, len), &product, accumulate);
    }
}

/// Adds the column sums of `d_y [tokens, out]` to the fp32 gradient `[out]` of a bias.
pub fn backward_bias(d_bias: &Tensor, d_y: &Tensor, accumulate: Accumulate) {
    if fused::backward_bias(d_bias, d_y, accumulate).is_none() {
        aten::backward_bias(d_bias, d_y, accumulate);
    }
}

/// Writes or adds `value` to a gradient buffer of the same shape, converting its kind.
pub fn store(gradient: &Tensor, value: &Tensor, accumulate: Accumulate) {
    if fused::store(gradient, value, accumulate).is_none() {
        aten::store(gradient, value, accumulate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_torch::Kind;

    use crate::cpu::testing::{assert_close, dot, numeric_gradient, randn};

    #[test]
    fn matches_finite_differences_in_fp32_and_bf16() {
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 3e-2)] {
            let (x, w, b, d_y) = (
                randn(&[6, 8], 1),
                randn(&[5, 8], 2),
                randn(&[5], 3),
                randn(&[6, 5], 4),
            );
            let output = |x: &Tensor, w: &Tensor, b: &Tensor| {
                let [x, w, b] = [x, w, b].map(|t| t.to_kind(Kind::Double));
                x.mm(&w.tr()) + b
            };
            let y = output(&x, &w, &b);
            let d_x = numeric_gradient(&x, |x| dot(&output(x, &w, &b), &d_y));
            let d_w_once = numeric_gradient(&w, |w| dot(&output(&x, w, &b), &d_y));
            let d_b_once = numeric_gradient(&b, |b| dot(&output(&x, &w, b), &d_y));

            let (xk, wk, bk, dk) = (
                x.to_kind(kind),
                w.to_kind(kind),
                b.to_kind(kind),
                d_y.to_kind(kind),
            );
            assert_close("y", &forward(&xk, &wk, Some(&bk)), &y, tolerance);
            assert_close("d_x", &backward_input(&dk, &wk), &d_x, tolerance);
            let d_w = Tensor::full([5, 8], 7.0, (Kind::Float, tandem_torch::Device::Cpu));
            let d_b = Tensor::full([5], 7.0, (Kind::Float, tandem_torch::Device::Cpu));
            backward_weight(&d_w, &dk, &xk, Accumulate::First);
            backward_bias(&d_b, &dk, Accumulate::First);
            assert_close("d_w", &d_w, &d_w_once, tolerance);
            assert_close("d_b", &d_b, &d_b_once, tolerance);
            backward_weight(&d_w, &dk, &xk, Accumulate::Add);
            backward_bias(&d_b, &dk, Accumulate::Add);
            assert_close("2 d_w", &d_w, &(&d_w_once * 2.0), tolerance);
            assert_close("2 d_b", &d_b, &(&d_b_once * 2.0), tolerance);
        }
    }

    /// Also in fp32, for which libtorch adds them to the result; and next to outputs without any.
    #[test]
    fn adapters_add_to_their_outputs_and_inputs() {
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
            let random =
                |rows: i64, columns: i64, seed| randn(&[rows, columns], seed).to_kind(kind);
            let (x, w, d_y) = (random(37, 40, 1), random(90, 40, 2), random(37, 90, 3));
            let bias = randn(&[90], 4).to_kind(kind);
            let (hidden, a) = (random(37, 8, 5), random(8, 40, 6));
            let (b1, b2) = (random(50, 4, 7), random(21, 4, 8));
            let double = |t: &Tensor| t.to_kind(Kind::Double);
            let adapter = |first: i64, weight, outputs| LowRank {
                hidden: hidden.narrow(1, first, 4),
                weight,
                outputs,
            };
            let adapters = [adapter(0, &b1, 0..50), adapter(4, &b2, 61..82)];
            let expected = double(&x).mm(&double(&w).tr()) + double(&bias);
            for LowRank {
                hidden,
                weight,
                outputs,
            } in &adapters
            {
                let columns = expected.narrow(1, outputs.start as i64, outputs.len() as i64);
                columns.add_(&double(hidden).mm(&double(weight).tr()));
            }
            let found = adapted_forward(&x, &w, Some(&bias), &adapters);
            assert_close(&format!("y, {kind:?}"), &found, &expected, tolerance);

            let expected = double(&d_y).mm(&double(&w)) + double(&hidden).mm(&double(&a));
            let found = adapted_backward_input(&d_y, &w, &hidden, &a);
            assert_close(&format!("d_x, {kind:?}"), &found, &expected, tolerance);
        }
    }

    /// More rows than one block has, and not a multiple.
    #[test]
    fn weight_gradients_in_blocks_are_those_in_one() {
        let (rows, columns) = (BLOCK_BYTES / 2048 * 2 + 70, 1024);
        let d_y = randn(&[4, rows], 1).to_kind(Kind::BFloat16);
        let x = randn(&[4, columns], 2).to_kind(Kind::BFloat16);
        let whole = d_y.tr().mm(&x).to_kind(Kind::Float);
        let d_w = Tensor::full(
            [rows, columns],
            f64::NAN,
            (Kind::Float, tandem_torch::Device::Cpu),
        );
        backward_weight_in_blocks(&d_w, &d_y, &x, Accumulate::First);
        assert_close("first", &d_w, &whole, 0.0);
        backward_weight_in_blocks(&d_w, &d_y, &x, Accumulate::Add);
        assert_close("second", &d_w, &(whole * 2), 0.0);
    }

    #[test]
    fn fused_kernels_match_tensor_operations() {
        for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 2e-5)] {
            for (rows, columns) in [(1i64, 1i64), (70, 1030), (129, 2500)] {
                for accumulate in [Accumulate::First, Accumulate::Add] {
                    let label = format!("{kind:?}, {rows} x {columns}, {accumulate:?}");
                    let value = randn(&[rows, columns], 1).to_kind(kind);
                    let (fused, plain) = (randn(&[rows, columns], 2), randn(&[rows, columns], 2));
                    store(&fused, &value, accumulate);
                    aten::store(&plain, &value, accumulate);
                    assert_close(&format!("store {label}"), &fused, &plain, 0.0);
                    let (fused, plain) = (randn(&[columns], 3), randn(&[columns], 3));
                    backward_bias(&fused, &value, accumulate);
                    aten::backward_bias(&plain, &value, accumulate);
                    assert_close(&format!("bias {label}"), &fused, &plain, tolerance);
                }
            }
        }
    }
}
