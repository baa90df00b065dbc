//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) over a flat shard: every state is read and written once, and the compute
//! copy is written on the way.

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;

/// Elements that one task updates.
const BLOCK: usize = 1 << 14;

/// What one update needs besides the state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, applied to every parameter.
    pub weight_decay: f64,
    /// Number of this update, from 1: sets the bias correction.
    pub step: u64,
    /// Multiplies every gradient first: the clip factor.
    pub gradient_scale: f64,
}

/// One shard, all of equal length.
#[derive(Debug)]
pub struct State<'a> {
    /// Parameters, updated.
    pub master: &'a mut [f32],
    /// First moment, updated.
    pub exp_avg: &'a mut [f32],
    /// Second moment, updated.
    pub exp_avg_sq: &'a mut [f32],
    /// Read.
    pub gradient: &'a [f32],
}

/// `p *= 1 - lr wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= lr m_hat / (sqrt(v_hat) + eps)`, as
/// `torch.optim.AdamW`; then `p`, rounded, to `compute` where it is given.
///
/// # Panics
/// When lengths differ.
pub fn step<C: Element>(state: State<'_>, compute: Option<&mut [C]>, step: &AdamWStep) {
    let State {
        master,
        exp_avg,
        exp_avg_sq,
        gradient,
    } = state;
    let lengths = [exp_avg.len(), exp_avg_sq.len(), gradient.len()];
    assert_eq!(lengths, [master.len(); 3], "lengths differ");
    if let Some(compute) = &compute {
        assert_eq!(compute.len(), master.len(), "lengths differ");
    }
    let coefficients = Coefficients::new(step);
    // Endless empty slices where there is no copy.
    let compute = compute
        .unwrap_or_default()
        .chunks_mut(BLOCK)
        .chain(std::iter::repeat_with(Default::default));
    let blocks = master
        .chunks_mut(BLOCK)
        .zip(exp_avg.chunks_mut(BLOCK))
        .zip(exp_avg_sq.chunks_mut(BLOCK))
        .zip(gradient.chunks(BLOCK))
        .zip(compute);
    dispatch::for_each(
        blocks.map(
            |((((master, exp_avg), exp_avg_sq), gradient), compute)| Update {
                coefficients: &coefficients,
                master,
                exp_avg,
                exp_avg_sq,
                gradient,
                compute,
            },
        ),
    );
}

/// The constants of an update in fp32.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Coefficients {
    /// What is left of a parameter after weight decay.
    decay: f32,
    /// Decay of the first moment.
    beta1: f32,
    /// Decay of the second moment.
    beta2: f32,
    /// Added to the root of the second moment.
    eps: f32,
    /// The learning rate over the bias correction of the first moment.
    step_size: f32,
    /// What the root of the second moment is multiplied by to correct its bias.
    inverse_root_correction2: f32,
    /// Multiplies every gradient first.
    scale: f32,
}

impl Coefficients {
    /// Computed in fp64, then rounded.
    fn new(step: &AdamWStep) -> Self {
        let correction1 = 1.0 - step.beta1.powf(step.step as f64);
        let correction2 = 1.0 - step.beta2.powf(step.step as f64);
        Self {
            decay: (1.0 - step.learning_rate * step.weight_decay) as f32,
            beta1: step.beta1 as f32,
            beta2: step.beta2 as f32,
            eps: step.eps as f32,
            step_size: (step.learning_rate / correction1) as f32,
            inverse_root_correction2: (1.0 / correction2.sqrt()) as f32,
            scale: step.gradient_scale as f32,
        }
    }

    #[inline(always)]
    fn update(&self, p: &mut f32, m: &mut f32, v: &mut f32, g: f32) {
        let g = g * self.scale;
        *m += (g - *m) * (1.0 - self.beta1);
        *v = *v * self.beta2 + (g * g) * (1.0 - self.beta2);
        let denominator = v.sqrt() * self.inverse_root_correction2 + self.eps;
        *p = *p * self.decay - self.step_size * *m / denominator;
    }
}

struct Update<'a, C> {
    coefficients: &'a Coefficients,
    master: &'a mut [f32],
    exp_avg: &'a mut [f32],
    exp_avg_sq: &'a mut [f32],
    gradient: &'a [f32],
    /// Empty where there is no copy.
    compute: &'a mut [C],
}

impl<C: Element> Kernel for Update<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let c = self.coefficients;
        let states = self
            .master
            .iter_mut()
            .zip(self.exp_avg)
            .zip(self.exp_avg_sq)
            .zip(self.gradient);
        if self.compute.is_empty() {
            states.for_each(|(((p, m), v), &g)| c.update(p, m, v, g));
        } else {
            for ((((p, m), v), &g), compute) in states.zip(self.compute) {
                c.update(p, m, v, g);
                *compute = C::round(*p);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{assert_close, bits, normal, unfilled, wide};

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

    /// Three updates against the formula in fp64, element by element.
    fn follows_the_formula<C: Element>(n: usize, with_copy: bool) {
        let square = |x: f32| x * x;
        let mut p = normal(n, 1);
        let mut m = normal(n, 2);
        let mut v: Vec<f32> = normal(n, 3).into_iter().map(square).collect();
        let (mut pe, mut me, mut ve) = (wide(&p), wide(&m), wide(&v));
        let mut copy = unfilled::<C>(n);
        for t in 1..4u64 {
            let (g, s) = (normal(n, 10 + t), settings(t));
            let state = State {
                master: &mut p,
                exp_avg: &mut m,
                exp_avg_sq: &mut v,
                gradient: &g,
            };
            step(state, with_copy.then_some(&mut copy[..]), &s);
            for i in 0..n {
                let g = f64::from(g[i]) * s.gradient_scale;
                me[i] = me[i] * s.beta1 + g * (1.0 - s.beta1);
                ve[i] = ve[i] * s.beta2 + g * g * (1.0 - s.beta2);
                let m_hat = me[i] / (1.0 - s.beta1.powf(t as f64));
                let v_hat = ve[i] / (1.0 - s.beta2.powf(t as f64));
                pe[i] = pe[i] * (1.0 - s.learning_rate * s.weight_decay)
                    - m_hat / (v_hat.sqrt() + s.eps) * s.learning_rate;
            }
        }
        assert_close("p", &p, &pe, 2e-6);
        assert_close("m", &m, &me, 2e-6);
        assert_close("v", &v, &ve, 2e-6);
        let rounded: Vec<C> = if with_copy {
            p.iter().map(|&p| C::round(p)).collect()
        } else {
            unfilled(n)
        };
        assert_eq!(bits(&copy), bits(&rounded), "the copy");
    }

    #[test]
    fn every_length_and_copy_follows_the_formula() {
        for n in [0, 1, BLOCK, BLOCK + 1, 20_001] {
            follows_the_formula::<f32>(n, false);
            follows_the_formula::<f32>(n, true);
            follows_the_formula::<bf16>(n, true);
        }
    }

    #[test]
    fn a_nan_gradient_reaches_its_parameter_alone() {
        let (mut p, mut m, mut v) = ([1f32; 3], [0f32; 3], [0f32; 3]);
        let mut copy = [bf16::ZERO; 3];
        let state = State {
            master: &mut p,
            exp_avg: &mut m,
            exp_avg_sq: &mut v,
            gradient: &[1.0, f32::NAN, 0.0],
        };
        step(state, Some(&mut copy), &settings(1));
        assert_eq!(p.map(f32::is_nan), [false, true, false]);
        assert_eq!(copy.map(bf16::is_nan), [false, true, false]);
    }
}
