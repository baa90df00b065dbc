//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) over flat shards, in one pass.

pub mod aten;
mod fused;

pub use tandem_kernels::adamw::AdamWStep;
use tandem_torch::{Kind, Tensor};

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
    /// fp32 gradient, read. By [`step_unread`] it is left as the update took it: clipped.
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

/// What an update takes from the norm of the gradient, on a device, where the host has not read it: fp32, one element each.
#[derive(Debug)]
pub struct UnreadNorm {
    /// Divides the gradient: at least 1. `None` where nothing is clipped.
    pub divisor: Option<Tensor>,
    /// 1 where there must be no update, else 0.
    pub skip: Tensor,
}

impl UnreadNorm {
    /// From the squared norm, fp64 `[1]`, for a gradient that is scaled down to the norm `limit`, unless that is 0. Nothing is updated
    /// where the norm or a number of `others`, fp64 of one element each, is not finite.
    pub fn new(squared_norm: &Tensor, limit: f64, others: &[&Tensor]) -> Self {
        // The formula of the clip factor, the other way round.
        let divisor = (limit > 0.0).then(|| {
            let ratio = (squared_norm.sqrt() + 1e-6) * (1.0 / limit);
            ratio.at_least(1.0).to_kind(Kind::Float)
        });
        // What is finite is 0 then, and everything else is no number.
        let all = others
            .iter()
            .fold(squared_norm * 0.0, |all, other| all + other.view([1]) * 0.0);
        let skip = Tensor::ones([1], (Kind::Float, all.device())).masked_fill(&all.eq(0.0), 0.0);
        Self { divisor, skip }
    }
}

/// As [`step`], with what `norm` says instead of the step's `gradient_scale`. On a device; nobody waits for it.
pub fn step_unread(state: &AdamWState<'_>, step: &AdamWStep, norm: &UnreadNorm) {
    aten::step_unread(state, step, norm);
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn state([master, exp_avg, exp_avg_sq, gradient]: &[Tensor; 4]) -> AdamWState<'_> {
        AdamWState {
            master,
            exp_avg,
            exp_avg_sq,
            gradient,
            compute: None,
        }
    }

    #[test]
    fn a_norm_that_is_unread_clips_and_decides_whether_there_is_an_update() {
        let numbers = || [1, 2, 3, 4].map(|seed| randn(&[100], seed).square());
        let (limit, loss) = (0.25, Tensor::from_slice(&[2.5f64]).get(0));
        let update = |squared: f64, limit: f64, others: &[&Tensor]| {
            let squared = Tensor::from_slice(&[squared]);
            let tensors = numbers();
            step_unread(
                &state(&tensors),
                &settings(3),
                &UnreadNorm::new(&squared, limit, others),
            );
            tensors
        };
        let known = |gradient_scale: f64| {
            let tensors = numbers();
            let settings = AdamWStep {
                gradient_scale,
                ..settings(3)
            };
            step(&state(&tensors), &settings);
            tensors
        };
        for (squared, limit, factor) in [
            (4.0, limit, limit / (2.0 + 1e-6)),
            (0.01, limit, 1.0),
            (4.0, 0.0, 1.0),
        ] {
            let (unread, known) = (update(squared, limit, &[&loss]), known(factor));
            for (unread, known) in unread[..3].iter().zip(&known) {
                assert_close(
                    &format!("norm^2 {squared}, limit {limit}"),
                    unread,
                    known,
                    2e-6,
                );
            }
        }
        let before = numbers();
        let bad = Tensor::from_slice(&[f64::NEG_INFINITY]);
        for (squared, other) in [(f64::NAN, &loss), (f64::INFINITY, &loss), (4.0, &bad)] {
            let after = update(squared, limit, &[other]);
            for (before, after) in before.iter().zip(&after) {
                assert!(before.equal(after), "{squared}, {other:?}");
            }
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
