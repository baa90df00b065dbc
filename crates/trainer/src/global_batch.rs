//! What ranks agree on about a step's batch: that all of a row see the same one, and how large it is over the column.
//!
//! On the CPU it is known before the step's first operator. On a device with several ranks it stays there, where the step computes
//! with it, until the host reads what the step came to: nothing waits for it before.

use tandem_comm::ReduceOp;
use tandem_parallel::{check_same_batch, compare_batches, gather_batches};
use tandem_tensor::{Device, Factor, Kind, Tensor};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::micro_batch::MicroBatch;

/// A count over the global batch.
pub(crate) enum Count {
    /// Known now.
    Known(u64),
    /// Known at the end: i64, without dimensions, on the device.
    Unread(Tensor),
}

impl Count {
    /// The same one.
    pub(crate) fn shallow_clone(&self) -> Self {
        match self {
            Self::Known(count) => Self::Known(*count),
            Self::Unread(count) => Self::Unread(count.shallow_clone()),
        }
    }
}

/// The part of a global batch that a step's ranks agree on.
pub(crate) struct GlobalBatch {
    targets: Count,
    real: Count,
    /// One over the targets, fp32 without dimensions, where they are unread.
    scale: Option<Tensor>,
    /// What this rank sees, and what all of its row do, i64 `[ranks of the row]`; where that is not compared yet.
    row: Option<(i64, Tensor)>,
}

impl GlobalBatch {
    /// Starts with it, and where that costs nothing, ends.
    ///
    /// # Errors
    /// When a peer fails; where everything is known now, also those of [`Self::learn`].
    pub(crate) fn agree(
        engine: &Engine,
        micro_batches: &[MicroBatch],
        step: u64,
    ) -> Result<Self, TrainError> {
        let hash = micro_batches
            .iter()
            .fold(0u64, |hash, micro| hash.rotate_left(17) ^ micro.hash);
        let (tp, device) = (engine.tp.group.as_ref(), engine.device);
        let row = match device {
            Device::Cuda(_) if tp.size() > 1 => {
                Some((hash as i64, gather_batches(tp, hash, device)?))
            }
            _ => {
                check_same_batch(tp, hash, step, device)?;
                None
            }
        };

        // Summed over the column, since every column sees all of the batch.
        let targets: usize = micro_batches.iter().map(|micro| micro.valid_targets).sum();
        let real: usize = micro_batches.iter().map(MicroBatch::real_tokens).sum();
        let own = [targets as i64, real as i64];
        if engine.dp.size() == 1 {
            return Self::known(own, row, step);
        }
        let counts = Tensor::from_slice(&own).to_device(device);
        engine.dp.all_reduce(&counts, ReduceOp::Sum)?.wait()?;
        if device == Device::Cpu {
            engine.dp.check()?;
            let counts = [0, 1].map(|index| counts.get(index).int64_value());
            return Self::known(counts, row, step);
        }
        let one = Tensor::ones([], (Kind::Double, device));
        let scale = one / counts.get(0).to_kind(Kind::Double);
        Ok(Self {
            targets: Count::Unread(counts.get(0)),
            real: Count::Unread(counts.get(1)),
            scale: Some(scale.to_kind(Kind::Float)),
            row,
        })
    }

    fn known(
        [targets, real]: [i64; 2],
        row: Option<(i64, Tensor)>,
        step: u64,
    ) -> Result<Self, TrainError> {
        match targets {
            0 => Err(TrainError::NoTargets { step }),
            _ => Ok(Self {
                targets: Count::Known(targets as u64),
                real: Count::Known(real as u64),
                scale: None,
                row,
            }),
        }
    }

    /// One over the targets.
    pub(crate) fn scale(&self) -> Factor<'_> {
        match (&self.targets, &self.scale) {
            (Count::Unread(_), Some(scale)) => Factor::OnDevice(scale),
            (Count::Known(targets), _) => Factor::Number(1.0 / (*targets as f64)),
            (Count::Unread(_), None) => unreachable!("both are made together"),
        }
    }

    /// Tokens that are no padding.
    pub(crate) fn real(&self) -> &Count {
        &self.real
    }

    /// fp64 `[1]`, for whoever computes with this batch before it is read: 0, or NaN where the row saw several.
    pub(crate) fn doubt(&self) -> Option<Tensor> {
        let (own, all) = self.row.as_ref()?;
        let doubts = Tensor::full(all.size(), f64::NAN, (Kind::Double, all.device()));
        let doubts = doubts.masked_fill(&all.eq(*own), 0.0);
        Some(doubts.sum(Kind::Double).view([1]))
    }

    /// What is to be read at the end, each i64 with one dimension.
    pub(crate) fn unread(&self) -> Vec<Tensor> {
        let mut unread = Vec::new();
        if let Count::Unread(targets) = &self.targets {
            unread.push(targets.view([1]));
        }
        unread.extend(self.row.as_ref().map(|(_, all)| all.shallow_clone()));
        unread
    }

    /// The valid targets, from what was [unread](Self::unread) and now is.
    ///
    /// # Errors
    /// When ranks of the row saw different batches, or there is no target.
    pub(crate) fn learn(
        &self,
        engine: &Engine,
        read: &[i64],
        step: u64,
    ) -> Result<u64, TrainError> {
        let (targets, hashes) = match &self.targets {
            Count::Known(targets) => (*targets, read),
            Count::Unread(_) => (read[0] as u64, &read[1..]),
        };
        compare_batches(engine.tp.group.as_ref(), hashes, step)?;
        match targets {
            0 => Err(TrainError::NoTargets { step }),
            targets => Ok(targets),
        }
    }
}
