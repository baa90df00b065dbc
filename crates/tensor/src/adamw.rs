//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) over flat shards, in one pass.

pub mod aten;
mod fused;

pub use tandem_kernels::adamw::AdamWStep;
use tandem_torch::Tensor;

use crate::cpu::element::with_element;

/// One shard's tensors, all flat and of equal length.
#[derive(Debug)]
pub struct AdamWState<'a> {
    /// fp32 parameters, updated.
    pub master: &'a Tensor,
    /// fp32 first moment, updated.
    pub exp_avg: &'a Tensor,
    /// fp32 second moment, updated.
    pub exp_avg_sq: &'a Tensor,
    /// fp32 gradient, read.
    pub gradient: &'a Tensor,
    /// Where the updated parameters go in the compute kind; `None` when `master` is what computes.
    pub compute: Option<&'a Tensor>,
}

/// `p *= 1 - lr wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= lr m_hat / (sqrt(v_hat) + eps)`, as
/// `torch.optim.AdamW`.
pub fn step(state: &AdamWState<'_>, step: &AdamWStep) {
    let done = match state.compute {
        None => fused::step::<f32>(state, step),
        Some(compute) => with_element!(compute.kind(), C => fused::step::<C>(state, step)),
    };
    if done.is_none() {
        aten::step(state, step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_torch::Kind;

    use crate::cpu::testing::{assert_close, randn};

    fn settings(step: u64) -> AdamWStep {
        AdamWStep {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            gradient_scale: 0.5,
        }
    }

    /// The formula in fp64, element by element.
    #[test]
    fn both_paths_follow_the_formula() {
        let n = 20_001;
        let (p0, m0, v0) = (randn(&[n], 1), randn(&[n], 2), randn(&[n], 3).square());
        for compute_kind in [None, Some(Kind::BFloat16), Some(Kind::Float)] {
            let (p, m, v) = (p0.copy(), m0.copy(), v0.copy());
            let (p2, m2, v2) = (p0.copy(), m0.copy(), v0.copy());
            let [mut pe, mut me, mut ve] = [&p0, &m0, &v0].map(|t| t.to_kind(Kind::Double));
            let out = compute_kind.map(|k| Tensor::zeros([n], (k, tandem_torch::Device::Cpu)));
            for t in 1..4u64 {
                let g = randn(&[n], 10 + t);
                let s = settings(t);
                step(
                    &AdamWState {
                        master: &p,
                        exp_avg: &m,
                        exp_avg_sq: &v,
                        gradient: &g,
                        compute: out.as_ref(),
                    },
                    &s,
                );
                aten::step(
                    &AdamWState {
                        master: &p2,
                        exp_avg: &m2,
                        exp_avg_sq: &v2,
                        gradient: &g,
                        compute: None,
                    },
                    &s,
                );
                let g = g.to_kind(Kind::Double) * s.gradient_scale;
                me = me * s.beta1 + &g * (1.0 - s.beta1);
                ve = ve * s.beta2 + g.square() * (1.0 - s.beta2);
                let m_hat = &me / (1.0 - s.beta1.powf(t as f64));
                let v_hat = &ve / (1.0 - s.beta2.powf(t as f64));
                pe = pe * (1.0 - s.learning_rate * s.weight_decay)
                    - m_hat / (v_hat.sqrt() + s.eps) * s.learning_rate;
            }
            assert_close("fused p", &p, &pe, 2e-6);
            assert_close("fused v", &v, &ve, 2e-6);
            assert_close("tensor p", &p2, &pe, 2e-6);
            assert_close("tensor m", &m2, &me, 2e-6);
            if let Some(out) = out {
                assert_close("compute copy", &out, &p.to_kind(out.kind()), 0.0);
            }
        }
    }
}
