//! Operators of libtorch that do in one pass over memory what others do in many.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::dispatch::Arg;
use crate::error::expect;
use crate::kind::Kind;
use crate::operators::{
    FUSED_ADAMW_, FUSED_RMS_NORM, FUSED_RMS_NORM_BACKWARD, MUL_OUT, SILU_BACKWARD_OUT,
};
use crate::recorder::{self, Action};
use crate::tensor::Tensor;

/// What one AdamW update is told besides its tensors.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Number of this update, from 1.
    pub step: u64,
}

/// Whether the gradient of the norm has no kernel on this process's devices; known when it was first asked for.
static NO_NORM_BACKWARD: AtomicBool = AtomicBool::new(false);

impl Tensor {
    /// One AdamW update of these fp32 parameters and of both moments, as `torch.optim.AdamW(fused=True)`.
    #[track_caller]
    pub fn adamw_(&self, gradient: &Self, exp_avg: &Self, exp_avg_sq: &Self, settings: &AdamW) {
        let step = Self::full([], settings.step as f64, (Kind::Float, self.device()));
        let begun = recorder::begin(Some(self));
        let [] = expect(FUSED_ADAMW_.call_for(&[
            Arg::Tensors(&[self]),
            Arg::Tensors(&[gradient]),
            Arg::Tensors(&[exp_avg]),
            Arg::Tensors(&[exp_avg_sq]),
            // The largest second moments, for AMSGrad.
            Arg::Tensors(&[]),
            Arg::Tensors(&[&step]),
            Arg::Float(settings.learning_rate),
            Arg::Float(settings.beta1),
            Arg::Float(settings.beta2),
            Arg::Float(settings.weight_decay),
            Arg::Float(settings.eps),
            Arg::Bool(false),
            Arg::Bool(false),
            // A factor for the gradient, which would be written back; and whether to do nothing.
            Arg::None,
            Arg::None,
        ]));
        let (read, written) = (
            [self, gradient, exp_avg, exp_avg_sq],
            [self, exp_avg, exp_avg_sq],
        );
        recorder::end(
            begun,
            "aten::_fused_adamw_",
            Action::Compute,
            &read,
            &written,
        );
    }

    /// `weight * x * rstd` over the last dimension, in fp32 and rounded once, and fp32 `rstd [.., 1]`; `weight` is of the kind of `x`.
    #[track_caller]
    pub fn rms_norm(&self, weight: &Self, eps: f64) -> (Self, Self) {
        let [y, rstd] = expect(FUSED_RMS_NORM.call_for(&[
            Arg::Tensor(self),
            Arg::Ints(weight.size()),
            Arg::SomeTensor(weight),
            Arg::SomeFloat(eps),
        ]));
        (y, rstd)
    }

    /// The gradient of [`Self::rms_norm`] with respect to `self`, where `self` is on a GPU for which this libtorch has a kernel.
    #[track_caller]
    pub fn rms_norm_backward(&self, d_y: &Self, weight: &Self, rstd: &Self) -> Option<Self> {
        if !self.device().is_cuda() || NO_NORM_BACKWARD.load(Ordering::Relaxed) {
            return None;
        }
        let result = FUSED_RMS_NORM_BACKWARD.call_for(&[
            Arg::Tensor(d_y),
            Arg::Tensor(self),
            Arg::Ints(weight.size()),
            Arg::Tensor(rstd),
            Arg::SomeTensor(weight),
            // Without the weight's gradient, which would be rounded to the weight's kind.
            Arg::Bools(&[true, false]),
        ]);
        match result {
            Ok([d_x, _]) => Some(d_x),
            Err(_) => {
                NO_NORM_BACKWARD.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// Writes `self * other` to `out`, which has the product's sizes.
    #[track_caller]
    pub fn mul_into(&self, other: &Self, out: &Self) {
        assert_eq!(self.size(), out.size(), "the product's sizes");
        let arguments = [Arg::Tensor(self), Arg::Tensor(other), Arg::Tensor(out)];
        expect(MUL_OUT.call(&arguments));
    }

    /// Writes to `d_x` the gradient of [`Self::silu`] with respect to `self`, from that of its result.
    #[track_caller]
    pub fn silu_backward_into(&self, d_y: &Self, d_x: &Self) {
        assert_eq!(self.size(), d_x.size(), "the gradient's sizes");
        let arguments = [Arg::Tensor(d_y), Arg::Tensor(self), Arg::Tensor(d_x)];
        expect(SILU_BACKWARD_OUT.call(&arguments));
    }
}
