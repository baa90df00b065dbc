//! Products of bf16 matrices through kernels: with an fp32 result, or one that is rounded once.
//!
//! libtorch's CPU library has no product of bf16 matrices with an fp32 result, which is what a weight gradient needs; and on
//! processors without AMX its bf16 products stay further below what the units can do than these. Elsewhere (other
//! processors, those with AMX, other kinds, CUDA) the callers use libtorch.

use tandem_torch::Tensor;

use tandem_kernels::Accumulate;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::instructions;

/// Writes `a [m, k] . b [k, n] (+ bias [n])` to `out [m, n]`, or adds it to what is there; `None`, with nothing written,
/// where these kernels do not apply or libtorch is faster.
///
/// `a` and `b` are bf16 and may be transposed. `out` is fp32, or bf16 when it is overwritten.
pub(crate) fn product(
    out: &Tensor,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    accumulate: Accumulate,
) -> Option<()> {
    #[cfg(target_arch = "x86_64")]
    {
        x86::product(out, a, b, bias, accumulate)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _elsewhere = (out, a, b, bias, accumulate);
        None
    }
}

/// Whether products with `a` on the left are for [`product`].
pub(crate) fn suits(a: &Tensor) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        x86::suits(a)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _elsewhere = a;
        false
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    use half::bf16;
    use tandem_kernels::avx512_bf16::Avx512Bf16;
    use tandem_kernels::matmul::{self, MatrixMut, MatrixView};
    use tandem_torch::{Kind, Tensor};

    use crate::cpu::element::{on_host, slice, span, span_mut};
    use tandem_kernels::Accumulate;

    pub(super) fn product(
        out: &Tensor,
        a: &Tensor,
        b: &Tensor,
        bias: Option<&Tensor>,
        accumulate: Accumulate,
    ) -> Option<()> {
        let cpu = instructions()?;
        let (a, b) = (matrix(a)?, matrix(b)?);
        let (m, n) = (a.rows(), b.columns());
        if a.columns() != b.rows() || !host(out) || out.size() != [m as i64, n as i64] {
            return None;
        }
        let strides = out.stride();
        let row = strides[0] as usize;
        if strides[1] != 1 || row < n {
            return None;
        }
        let bias = match bias {
            Some(bias) if host(bias) && bias.size() == [n as i64] => {
                Some(bias.to_kind(Kind::Float).contiguous())
            }
            Some(_) => return None,
            None => None,
        };
        let bias = bias.as_ref().map(slice::<f32>);
        match (out.kind(), accumulate) {
            (Kind::Float, _) => {
                // SAFETY: no operand is a part of the result, nor anything else that is used meanwhile: it is a gradient
                // buffer, or an output that the caller has just made.
                let out = unsafe { span_mut::<f32>(out) };
                let out = MatrixMut::new(out, m, n, row);
                matmul::product(cpu, out, a, b, bias, accumulate);
            }
            (Kind::BFloat16, Accumulate::First) => {
                // SAFETY: as above.
                let out = unsafe { span_mut::<bf16>(out) };
                matmul::rounded_product(cpu, MatrixMut::new(out, m, n, row), a, b, bias);
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn suits(a: &Tensor) -> bool {
        a.kind() == Kind::BFloat16 && host(a) && instructions().is_some()
    }

    fn host(t: &Tensor) -> bool {
        on_host(t)
    }

    /// `None` unless it is bf16 in host memory, has elements, and one of the strides is 1, as in every matrix and every
    /// transposed matrix.
    fn matrix(t: &Tensor) -> Option<MatrixView<'_>> {
        let (&[rows, columns], &[row, column]) = (t.size(), t.stride()) else {
            return None;
        };
        let suits =
            host(t) && t.kind() == Kind::BFloat16 && t.numel() > 0 && (row == 1 || column == 1);
        let [rows, columns, row, column] = [rows, columns, row, column].map(|n| n as usize);
        suits.then(|| MatrixView::new(span::<bf16>(t), rows, columns, row, column))
    }

    /// The instructions, where this processor has them and none that libtorch would use instead and that are faster still.
    pub(crate) fn instructions() -> Option<Avx512Bf16> {
        static ANSWER: OnceLock<Option<Avx512Bf16>> = OnceLock::new();
        *ANSWER.get_or_init(|| {
            const AMX_BF16: u32 = 1 << 22;
            let has_amx = __cpuid_count(7, 0).edx & AMX_BF16 != 0;
            Avx512Bf16::detect().filter(|_| !has_amx)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_torch::Kind;

    use crate::cpu::testing::{assert_close, randn};

    /// Shapes around the tiles and blocks, all four layouts, both kinds of result.
    #[test]
    fn products_match_fp32_arithmetic() {
        let bf16 = |shape: &[i64], seed| (randn(shape, seed) * 0.3).to_kind(Kind::BFloat16);
        for (m, k, n) in [
            (1, 1, 1),
            (13, 7, 33),
            (28, 64, 64),
            (129, 1300, 47),
            (300, 33, 1100),
        ] {
            for layout in 0..4 {
                let (a, b) = (bf16(&[m, k], 1), bf16(&[k, n], 2));
                let a = if layout & 1 == 0 {
                    a
                } else {
                    a.tr().contiguous().tr()
                };
                let b = if layout & 2 == 0 {
                    b
                } else {
                    b.tr().contiguous().tr()
                };
                let exact = a.to_kind(Kind::Double).mm(&b.to_kind(Kind::Double));
                let label = format!("[{m}, {k}] . [{k}, {n}], layout {layout}");

                let bias = randn(&[n], 3);
                let out = Tensor::full(
                    [m, n],
                    f64::NAN,
                    (Kind::BFloat16, tandem_torch::Device::Cpu),
                );
                if product(&out, &a, &b, Some(&bias), Accumulate::First).is_none() {
                    let untouched = out.to_vec::<f32>().iter().all(|x| x.is_nan());
                    assert!(untouched, "{label}: the result was touched");
                    continue;
                }
                assert_close(&label, &out, &(&exact + &bias), 6e-3);

                // A result inside a wider buffer, whose other columns stay.
                let wide = Tensor::full([m, n + 5], 7.0, (Kind::Float, tandem_torch::Device::Cpu));
                let out = wide.narrow(1, 2, n);
                let done = product(&out, &a, &b, None, Accumulate::First);
                assert_eq!(done, Some(()));
                assert_close(&label, &out, &exact, 2e-5);
                let done = product(&out, &a, &b, None, Accumulate::Add);
                assert_eq!(done, Some(()));
                assert_close(&label, &out, &(&exact * 2.0), 4e-5);
                let beside = wide.narrow(1, 0, 2).sum(Kind::Double)
                    + wide.narrow(1, n + 2, 3).sum(Kind::Double);
                assert_eq!(beside.double_value(), (7 * 5 * m) as f64);
            }
        }
    }

    #[test]
    fn what_does_not_suit_is_left_alone() {
        let x = randn(&[4, 4], 1);
        let half = x.to_kind(Kind::BFloat16);
        let out = Tensor::zeros([4, 4], (Kind::BFloat16, tandem_torch::Device::Cpu));
        for (a, b, accumulate) in [
            (&x, &x, Accumulate::First),
            (&half, &x, Accumulate::First),
            (&half, &half, Accumulate::Add),
            (&half, &half.narrow(0, 0, 3), Accumulate::First),
        ] {
            assert_eq!(product(&out, a, b, None, accumulate), None);
        }
        assert_eq!(out.abs().sum(Kind::Float).double_value(), 0.0);
    }
}
