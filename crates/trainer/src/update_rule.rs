//! How the gradient becomes an update.

use tandem_parallel::WeightDecayOn;
use tandem_tensor::adamw::AdamWStep;

/// How the gradient becomes an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateRule {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The parameters that decay.
    pub weight_decay_on: WeightDecayOn,
    /// Gradients are scaled down to this norm; 0 leaves them as they are.
    pub max_grad_norm: f64,
}

impl UpdateRule {
    /// What a run does unless it is told otherwise: the defaults of `torch.optim.AdamW`, and gradients clipped at a norm of 1.
    pub const USUAL: Self = Self {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        weight_decay_on: WeightDecayOn::All,
        max_grad_norm: 1.0,
    };

    /// What a gradient of this norm is multiplied with.
    pub fn clip_factor(&self, grad_norm: f64) -> f64 {
        match self.max_grad_norm {
            limit if limit > 0.0 => (limit / (grad_norm + 1e-6)).min(1.0),
            _ => 1.0,
        }
    }

    /// The update of step `step`, whose gradient has this norm, where it is known.
    pub(crate) fn step(&self, learning_rate: f64, grad_norm: Option<f64>, step: u64) -> AdamWStep {
        // The clip factor is folded into the update: no pass over the gradients for it.
        let gradient_scale = grad_norm.map_or(1.0, |norm| self.clip_factor(norm));
        AdamWStep {
            learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            step,
            gradient_scale,
        }
    }
}
