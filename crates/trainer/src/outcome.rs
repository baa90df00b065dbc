//! What a step comes to, before the host has read it: the loss, the norm of the gradient, and whether there may be an update.

use tandem_comm::ReduceOp;
use tandem_parallel::{global_squared_norm, own_gradient_is_finite};
use tandem_tensor::adamw::UnreadNorm;
use tandem_tensor::{Kind, Tensor};

use crate::balance::{Balance, ExpertReport};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::finite::refuse_non_finite;
use crate::global_batch::GlobalBatch;
use crate::update_rule::UpdateRule;

/// Sums over all ranks, where they are computed.
pub(crate) struct Outcome {
    /// fp64, without dimensions: over the targets of this rank's tokens, and over those of the global batch.
    own_loss: Tensor,
    loss_sum: Tensor,
    /// fp64 `[1]`.
    squared_norm: Tensor,
    /// fp64, with one dimension: what experts got.
    experts: Option<Tensor>,
}

/// What the host has read of it, all of it good.
pub(crate) struct Read {
    /// With what a loss on the balance of experts adds to it.
    pub(crate) loss: f64,
    pub(crate) experts: Option<ExpertReport>,
    pub(crate) grad_norm: f64,
    /// Valid targets of the global batch.
    pub(crate) n_tokens: u64,
}

impl Outcome {
    /// Adds up what ranks have, from the sum of this rank's losses on. Nothing waits for it.
    ///
    /// # Errors
    /// When a peer fails.
    pub(crate) fn add_up(
        engine: &Engine,
        loss_sum: Tensor,
        batch: &GlobalBatch,
        balance: &mut Balance,
    ) -> Result<Self, TrainError> {
        let own_loss = loss_sum.copy();
        engine.dp.all_reduce(&loss_sum, ReduceOp::Sum)?.wait()?;
        balance.agree(engine)?;
        let (world, doubt) = (engine.world.as_ref(), batch.doubt());
        let squared_norm =
            global_squared_norm(&engine.units, world, engine.device, doubt.as_ref())?;
        Ok(Self {
            own_loss,
            loss_sum,
            squared_norm,
            experts: balance.to_read(),
        })
    }

    /// For an update that comes before the host has read anything, which then must not happen where [`Self::read`] has an error.
    pub(crate) fn unread_norm(&self, batch: &GlobalBatch, rule: &UpdateRule) -> UnreadNorm {
        // Without a target it is no number.
        let loss = batch.scale().times(&self.loss_sum);
        UnreadNorm::new(&self.squared_norm, rule.max_grad_norm, &[&loss])
    }

    /// Reads it, with what of the batch is not known yet: here the host waits for all that a device was given, once.
    ///
    /// # Errors
    /// When a collective has failed, ranks disagree on the batch, or loss or norm is not finite.
    pub(crate) fn read(
        &self,
        engine: &Engine,
        batch: &GlobalBatch,
        balance: &Balance,
        step: u64,
    ) -> Result<Read, TrainError> {
        let loss_sum = self.loss_sum.view([1]);
        let mut sums = vec![&loss_sum, &self.squared_norm];
        sums.extend(&self.experts);
        let sums = Tensor::cat(&sums, 0);
        let numbers = sums.numel();
        // Numbers of both kinds in one copy, bit by bit.
        let mut all = vec![sums.view_dtype(Kind::Int64)];
        all.extend(batch.unread());
        let read = Tensor::cat(&all, 0).to_vec::<i64>();
        engine.check_groups()?;
        let (sums, unread) = read.split_at(numbers);
        let n_tokens = batch.learn(engine, unread, step)?;
        let sums: Vec<f64> = sums
            .iter()
            .map(|bits| f64::from_bits(*bits as u64))
            .collect();
        let (loss_sum, squared_norm) = (sums[0], sums[1]);
        let (loss, grad_norm) = (loss_sum * (1.0 / n_tokens as f64), squared_norm.sqrt());
        let loss_is_finite = || self.own_loss.double_value().is_finite();
        refuse_non_finite(engine, "loss", loss, loss_is_finite, step)?;
        let gradient_is_finite = || own_gradient_is_finite(&engine.units);
        refuse_non_finite(engine, "gradient norm", grad_norm, gradient_is_finite, step)?;
        let experts = balance.report(&sums[2..]);
        Ok(Read {
            loss: loss + experts.as_ref().map_or(0.0, |experts| experts.added),
            experts,
            grad_norm,
            n_tokens,
        })
    }
}
