//! Products of bf16 matrices on processors with AVX512-BF16: with an fp32 result, or one that is rounded once.
//!
//! libtorch's CPU library has no product of bf16 matrices with an fp32 result, which is what a weight gradient needs; and on
//! processors without AMX its bf16 products stay further below what the units can do than these. Elsewhere (other
//! processors, those with AMX, other kinds, CUDA) the callers use libtorch.
//!
//! The scheme is that of Goto and van de Geijn (ACM TOMS 34:3, 2008): blocks of both operands are copied into panels that
//! the innermost loop reads from end to end, sized for the caches. Every element of the result is the sum of the same terms
//! in the same order whatever the number of threads.

#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod kernel;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
pub(crate) mod panels;

use tch::Tensor;

use crate::linear::Accumulate;

#[cfg(target_arch = "x86_64")]
pub(crate) use pack::Operand;

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
    use tch::{Device, Kind, Tensor};

    use super::blocks::{Problem, Target};
    use super::pack::Operand;
    use crate::linear::Accumulate;

    pub(super) fn product(
        out: &Tensor,
        a: &Tensor,
        b: &Tensor,
        bias: Option<&Tensor>,
        accumulate: Accumulate,
    ) -> Option<()> {
        if !suits(a) {
            return None;
        }
        let (a_size, b_size) = (matrix(a, Kind::BFloat16)?, matrix(b, Kind::BFloat16)?);
        let ((m, k), (same_k, n)) = (a_size, b_size);
        if k != same_k || m * n * k == 0 || !host(out) || out.size() != [m as i64, n as i64] {
            return None;
        }
        let strides = out.stride();
        if strides[1] != 1 || (strides[0] as usize) < n {
            return None;
        }
        let row = strides[0] as usize;
        let target = match (out.kind(), accumulate) {
            (Kind::Float, _) => Target::Float {
                data: out.data_ptr().cast::<f32>(),
                row,
                adds: accumulate == Accumulate::Add,
            },
            (Kind::BFloat16, Accumulate::First) => Target::Bf16 {
                data: out.data_ptr().cast::<bf16>(),
                row,
            },
            _ => return None,
        };
        let bias = match bias {
            Some(bias) if host(bias) && bias.size() == [n as i64] => {
                Some(bias.to_kind(Kind::Float).contiguous())
            }
            Some(_) => return None,
            None => None,
        };
        let (a_strides, b_strides) = (a.stride(), b.stride());
        let problem = Problem {
            m,
            n,
            k,
            a: operand(a, a_strides[0], a_strides[1])?,
            b: operand(b, b_strides[1], b_strides[0])?,
            bias: bias
                .as_ref()
                .map(|bias| bias.data_ptr().cast_const().cast()),
            target,
        };
        // SAFETY: the processor has the features (`is_fastest`); libtorch's sizes and strides stay within the tensors'
        // storages, which the borrowed tensors keep alive; no operand is a part of the result (a gradient buffer or an
        // output that the caller has just made).
        unsafe { problem.solve() };
        Some(())
    }

    pub(super) fn suits(a: &Tensor) -> bool {
        a.kind() == Kind::BFloat16 && host(a) && is_fastest()
    }

    fn host(t: &Tensor) -> bool {
        t.device() == Device::Cpu
    }

    fn matrix(t: &Tensor, kind: Kind) -> Option<(usize, usize)> {
        match t.size().as_slice() {
            &[rows, columns] if host(t) && t.kind() == kind => {
                Some((rows as usize, columns as usize))
            }
            _ => None,
        }
    }

    /// `None` unless one of the strides is 1, as in every matrix and every transposed matrix.
    fn operand(t: &Tensor, outer: i64, reduced: i64) -> Option<Operand> {
        (outer == 1 || reduced == 1).then(|| Operand {
            data: t.data_ptr().cast_const().cast(),
            outer: outer as usize,
            reduced: reduced as usize,
        })
    }

    /// Whether this processor has the instructions, and none that libtorch would use instead and that are faster still.
    fn is_fastest() -> bool {
        static ANSWER: OnceLock<bool> = OnceLock::new();
        *ANSWER.get_or_init(|| {
            const AMX_BF16: u32 = 1 << 22;
            is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && __cpuid_count(7, 0).edx & AMX_BF16 == 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

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
                let out = Tensor::full([m, n], f64::NAN, (Kind::BFloat16, tch::Device::Cpu));
                if product(&out, &a, &b, Some(&bias), Accumulate::First).is_none() {
                    let fallback = out.shallow_clone();
                    assert!(
                        !out.isnan().all().int64_value(&[]) == 0,
                        "{fallback:?} was touched"
                    );
                    continue;
                }
                assert_close(&label, &out, &(&exact + &bias), 6e-3);

                // A result inside a wider buffer, whose other columns stay.
                let wide = Tensor::full([m, n + 5], 7.0, (Kind::Float, tch::Device::Cpu));
                let out = wide.narrow(1, 2, n);
                let done = product(&out, &a, &b, None, Accumulate::First);
                assert_eq!(done, Some(()));
                assert_close(&label, &out, &exact, 2e-5);
                let done = product(&out, &a, &b, None, Accumulate::Add);
                assert_eq!(done, Some(()));
                assert_close(&label, &out, &(&exact * 2), 4e-5);
                let beside = wide.narrow(1, 0, 2).sum(Kind::Double)
                    + wide.narrow(1, n + 2, 3).sum(Kind::Double);
                assert_eq!(beside.double_value(&[]), (7 * 5 * m) as f64);
            }
        }
    }

    #[test]
    fn what_does_not_suit_is_left_alone() {
        let x = randn(&[4, 4], 1);
        let half = x.to_kind(Kind::BFloat16);
        let out = Tensor::zeros([4, 4], (Kind::BFloat16, tch::Device::Cpu));
        for (a, b, accumulate) in [
            (&x, &x, Accumulate::First),
            (&half, &x, Accumulate::First),
            (&half, &half, Accumulate::Add),
            (&half, &half.narrow(0, 0, 3), Accumulate::First),
        ] {
            assert_eq!(product(&out, a, b, None, accumulate), None);
        }
        assert_eq!(out.abs().sum(Kind::Float).double_value(&[]), 0.0);
    }
}
