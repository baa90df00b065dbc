//! Operators of libtorch that do in one pass over memory what others do in many.

use crate::dispatch::Arg;
use crate::error::{TorchError, expect};
use crate::kind::Kind;
use crate::operators::{
    FOREACH_ADDCMUL_, FUSED_ADAMW_, FUSED_RMS_NORM, FUSED_RMS_NORM_BACKWARD, MUL_OUT,
    SILU_BACKWARD_OUT,
};
use crate::recorder::{self, Writes};
use crate::stand_in;
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

/// What an update is told by numbers on its device, which the host need not know: fp32 without dimensions, or of one element.
#[derive(Debug, Clone, Copy)]
pub struct AdamWGuard<'a> {
    /// Divides every gradient, which is left divided.
    pub divisor: Option<&'a Tensor>,
    /// Where it is 1, nothing is written.
    pub skip: &'a Tensor,
}

/// The name of the operator for the norm's gradient.
const NORM_BACKWARD: &str = "aten::_fused_rms_norm_backward";

impl Tensor {
    /// One AdamW update of these fp32 parameters and of both moments, as `torch.optim.AdamW(fused=True)`.
    #[track_caller]
    pub fn adamw_(
        &self,
        gradient: &Self,
        exp_avg: &Self,
        exp_avg_sq: &Self,
        settings: &AdamW,
        guard: Option<AdamWGuard<'_>>,
    ) {
        let step = Self::full([], settings.step as f64, (Kind::Float, self.device()));
        let divisor = guard.and_then(|guard| guard.divisor);
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
            divisor.map_or(Arg::None, Arg::SomeTensor),
            guard.map_or(Arg::None, |guard| Arg::SomeTensor(guard.skip)),
        ]));
        if recorder::is_on() {
            if divisor.is_some() {
                gradient.tell_made();
            }
            exp_avg.tell_made();
            exp_avg_sq.tell_made();
        }
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

    /// The gradient of [`Self::rms_norm`] with respect to `self`; `None` where there is no kernel for it: on the CPU.
    #[track_caller]
    pub fn rms_norm_backward(&self, d_y: &Self, weight: &Self, rstd: &Self) -> Option<Self> {
        if !self.device().is_cuda() {
            return None;
        }
        if self.pretends() {
            let given = [d_y, self, rstd, weight];
            let [d_x] = stand_in::for_operator(NORM_BACKWARD, Writes::Results, &given, || {
                [self.rms_norm_backward_by_formula(d_y, weight, rstd)]
            });
            return Some(d_x);
        }
        let [d_x, _] = expect(self.call_rms_norm_backward(d_y, weight, rstd));
        Some(d_x)
    }

    fn call_rms_norm_backward(
        &self,
        d_y: &Self,
        weight: &Self,
        rstd: &Self,
    ) -> Result<[Self; 2], TorchError> {
        FUSED_RMS_NORM_BACKWARD.call_for(&[
            Arg::Tensor(d_y),
            Arg::Tensor(self),
            Arg::Ints(weight.size()),
            Arg::Tensor(rstd),
            Arg::SomeTensor(weight),
            // Without the weight's gradient, which would be rounded to the weight's kind.
            Arg::Bools(&[true, false]),
        ])
    }

    fn rms_norm_backward_by_formula(&self, d_y: &Self, weight: &Self, rstd: &Self) -> Self {
        let wide = |tensor: &Self| tensor.to_kind(Kind::Float);
        let (x_hat, d_x_hat) = (wide(self) * rstd, wide(d_y) * wide(weight));
        let projection = (&d_x_hat * &x_hat).mean_dims(&[-1], true, Kind::Float);
        ((d_x_hat - x_hat * projection) * rstd).to_kind(self.kind())
    }

    /// Writes `self * other` to `out`, which has the product's sizes.
    #[track_caller]
    pub fn mul_into(&self, other: &Self, out: &Self) {
        assert_eq!(self.size(), out.size(), "the product's sizes");
        let arguments = [Arg::Tensor(self), Arg::Tensor(other), Arg::Tensor(out)];
        expect(MUL_OUT.call(&arguments));
    }

    /// Adds `factor * a * b` in place. They may be of other kinds, and are broadcast to the sizes of `self`.
    #[track_caller]
    pub fn add_product_(&self, a: &Self, b: &Self, factor: f64) {
        // By the operator for lists: the one for tensors takes its factor in a form that the dispatcher does not. The host reads it.
        let factors = Self::from_slice(&[factor]);
        let [] = expect(FOREACH_ADDCMUL_.call_for(&[
            Arg::Tensors(&[self]),
            Arg::Tensors(&[a]),
            Arg::Tensors(&[b]),
            Arg::Tensor(&factors),
        ]));
    }

    /// Writes to `d_x` the gradient of [`Self::silu`] with respect to `self`, from that of its result.
    #[track_caller]
    pub fn silu_backward_into(&self, d_y: &Self, d_x: &Self) {
        assert_eq!(self.size(), d_x.size(), "the gradient's sizes");
        let arguments = [Arg::Tensor(d_y), Arg::Tensor(self), Arg::Tensor(d_x)];
        expect(SILU_BACKWARD_OUT.call(&arguments));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// There is no kernel for the CPU; that this is what libtorch says means that the name and the arguments are right.
    #[test]
    fn the_gradient_of_a_norm_is_called_as_its_schema_has_it() {
        let on_cpu = (Kind::Float, Device::Cpu);
        let (x, weight) = (Tensor::ones([3, 4], on_cpu), Tensor::ones([4], on_cpu));
        let rstd = Tensor::ones([3, 1], on_cpu);
        let error = x.call_rms_norm_backward(&x, &weight, &rstd).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(NORM_BACKWARD), "{message}");
        // Old releases print why, and do not hand it out.
        let is_about_kernels = message.contains("'CPU' backend");
        let is_handed_out = !message.contains("has printed why");
        assert!(is_about_kernels || !is_handed_out, "{message}");
        assert!(x.rms_norm_backward(&x, &weight, &rstd).is_none());
    }

    #[test]
    fn products_of_other_kinds_are_added_in_one_pass() {
        let sum = Tensor::ones([3, 4], (Kind::Float, Device::Cpu));
        let a = Tensor::full([3, 4], 2.0, (Kind::BFloat16, Device::Cpu));
        let b = Tensor::from_slice(&[1f32, 2.0, 3.0, 0.1]);
        let ((), calls) = recorder::record(recorder::Detail::Counts, || {
            sum.add_product_(&a, &b, -0.5);
        });
        let row = [0.0, -1.0, -2.0, f64::from(1.0 - 0.1f32)];
        assert_eq!(sum.to_vec::<f64>(), row.repeat(3));
        let [call] = calls.as_slice() else {
            panic!("{calls:?}");
        };
        // The factor is a tensor, too.
        assert_eq!((call.read, call.written), (48 + 24 + 16 + 8, 48));
    }

    #[test]
    fn an_update_moves_each_of_its_tensors_once() {
        let tensor = || Tensor::ones([100], (Kind::Float, Device::Cpu));
        let [parameters, gradient, exp_avg, exp_avg_sq] = [(); 4].map(|()| tensor());
        let settings = AdamW {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.0,
            eps: 1e-8,
            step: 1,
        };
        let ((), calls) = recorder::record(recorder::Detail::Counts, || {
            parameters.adamw_(&gradient, &exp_avg, &exp_avg_sq, &settings, None);
        });
        let update = calls.last().unwrap();
        assert_eq!(update.name, "aten::_fused_adamw_");
        // The number of the step is a tensor, too.
        assert_eq!((update.read, update.written), (4 * 400 + 4, 3 * 400));

        let number = |value: f64| Tensor::full([], value, (Kind::Float, Device::Cpu));
        let before = [&parameters, &gradient, &exp_avg, &exp_avg_sq].map(Tensor::copy);
        let update = |skip: f64| {
            let guard = AdamWGuard {
                divisor: Some(&number(2.0)),
                skip: &number(skip),
            };
            let update = || {
                parameters.adamw_(&gradient, &exp_avg, &exp_avg_sq, &settings, Some(guard));
            };
            let ((), mut calls) = recorder::record(recorder::Detail::Counts, update);
            calls.pop().unwrap()
        };
        // A divided gradient is written, and two more numbers are read.
        let skipped = update(1.0);
        assert_eq!((skipped.read, skipped.written), (4 * 400 + 12, 4 * 400));
        for (before, after) in before
            .iter()
            .zip([&parameters, &gradient, &exp_avg, &exp_avg_sq])
        {
            assert!(before.equal(after), "what is skipped changes nothing");
        }
        let _update = update(0.0);
        assert_eq!(gradient.get(7).double_value(), 0.5);
        assert!(!before[0].equal(&parameters));
    }
}
