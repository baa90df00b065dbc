//! Which sample comes when: a function of (seed, epoch, position in the epoch), and of nothing else.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::permutation::Permutation;

/// The next sample of a run.
///
/// This, not a number of steps, is what a checkpoint must hold: it means the same for every mesh and batch size, so a
/// run continues with the exact next sample whatever it continues on.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Samples of this epoch that were consumed, by all ranks together.
    pub sample: u64,
}

/// How much of the data a run uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochLimit {
    /// Passes over the data.
    pub epochs: u64,
    /// Optimizer steps after which an epoch ends early.
    pub steps_per_epoch: Option<u64>,
}

impl Default for EpochLimit {
    /// One whole epoch.
    fn default() -> Self {
        Self {
            epochs: 1,
            steps_per_epoch: None,
        }
    }
}

/// The order of samples over all ranks. Every rank holds an equal one, and takes its rows of each global batch.
#[derive(Debug, Clone)]
pub struct Sampler {
    len: u64,
    seed: u64,
    global_batch: u64,
    limit: EpochLimit,
    /// Whether an epoch ends with what fills a global batch.
    drops_last: bool,
    /// Whether an epoch has an order of its own, or that of the dataset.
    shuffles: bool,
}

/// Why there is no order.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SamplerError {
    /// Not even one step of its full size.
    #[error(
        "the dataset has {len} samples, {missing} fewer than one global batch of {global_batch}: \
         use more data, a smaller seq_length, batch_size or gradient_accumulation_steps, fewer data parallel ranks, or \
         no drop_last"
    )]
    TooSmall {
        /// Samples there are.
        len: u64,
        /// Samples of one step.
        global_batch: u64,
        /// The difference.
        missing: u64,
    },
    /// A step without samples.
    #[error("the global batch is 0: it must be at least 1")]
    ZeroBatch,
    /// Nothing to give an order to.
    #[error("the dataset has no samples")]
    NoSamples,
}

impl Sampler {
    /// An order of `len` samples, for one epoch, of which each step has a full global batch: what is left of an epoch is
    /// left out.
    ///
    /// # Errors
    /// Fewer samples than one global batch; a global batch of 0.
    pub fn new(len: u64, seed: u64, global_batch: u64) -> Result<Self, SamplerError> {
        let sampler = Self::of_all(len, seed, global_batch)?;
        if len < global_batch {
            return Err(SamplerError::TooSmall {
                len,
                global_batch,
                missing: global_batch - len,
            });
        }
        Ok(Self {
            drops_last: true,
            ..sampler
        })
    }

    /// An order of `len` samples, for one epoch, whose last step has as many as are left.
    ///
    /// # Errors
    /// No samples; a global batch of 0.
    pub fn of_all(len: u64, seed: u64, global_batch: u64) -> Result<Self, SamplerError> {
        if global_batch == 0 {
            return Err(SamplerError::ZeroBatch);
        }
        if len == 0 {
            return Err(SamplerError::NoSamples);
        }
        Ok(Self {
            len,
            seed,
            global_batch,
            limit: EpochLimit::default(),
            drops_last: false,
            shuffles: true,
        })
    }

    /// `len` samples in the dataset's own order, once, whose last step has as many as are left: for evaluation.
    ///
    /// # Errors
    /// No samples; a global batch of 0.
    pub fn in_order(len: u64, global_batch: u64) -> Result<Self, SamplerError> {
        Ok(Self {
            shuffles: false,
            ..Self::of_all(len, 0, global_batch)?
        })
    }

    /// The same order, for as much as `limit` says.
    pub fn limited(self, limit: EpochLimit) -> Self {
        Self { limit, ..self }
    }

    /// Samples of one full optimizer step, over all ranks.
    pub fn global_batch(&self) -> u64 {
        self.global_batch
    }

    /// Optimizer steps of one epoch from its start.
    pub fn steps_per_epoch(&self) -> u64 {
        let steps = self.steps_of(self.len);
        self.limit
            .steps_per_epoch
            .map_or(steps, |limit| steps.min(limit))
    }

    /// Samples of every epoch that no step has.
    pub fn left_out(&self) -> u64 {
        self.len
            - self
                .steps_per_epoch()
                .saturating_mul(self.global_batch)
                .min(self.len)
    }

    /// Steps that `samples` in a row are enough for.
    fn steps_of(&self, samples: u64) -> u64 {
        match self.drops_last {
            true => samples / self.global_batch,
            false => samples.div_ceil(self.global_batch),
        }
    }

    /// Samples of the step that begins at `start`, a result of [`Self::next_batch`]: a global batch, or what is left of the
    /// epoch.
    pub fn batch_at(&self, start: Position) -> u64 {
        let left = self.epoch_end().saturating_sub(start.sample);
        left.min(self.global_batch)
    }

    /// Optimizer steps from the start to the end of the last epoch.
    pub fn total_steps(&self) -> u64 {
        self.steps_per_epoch().saturating_mul(self.limit.epochs)
    }

    /// Where the next global batch begins if `position` is as far as the run is: there, in the next epoch if too little
    /// is left of this one, or nowhere after the last epoch.
    pub fn next_batch(&self, position: Position) -> Option<Position> {
        if self.steps_per_epoch() == 0 {
            return None;
        }
        let left = self.epoch_end().saturating_sub(position.sample);
        let fits = self.steps_of(left) > 0;
        let start = if fits {
            position
        } else {
            Position {
                epoch: position.epoch.checked_add(1)?,
                sample: 0,
            }
        };
        (start.epoch < self.limit.epochs).then_some(start)
    }

    /// Optimizer steps from `position` to the end of the last epoch.
    pub fn steps_left(&self, position: Position) -> u64 {
        self.next_batch(position).map_or(0, |start| {
            let of_this_epoch = self.steps_of(self.epoch_end() - start.sample);
            let later_epochs = self.limit.epochs - start.epoch - 1;
            of_this_epoch.saturating_add(later_epochs.saturating_mul(self.steps_per_epoch()))
        })
    }

    /// Samples of an epoch that may be used. A run that continues with another batch size may be anywhere in an epoch, so
    /// what is left is counted in samples.
    fn epoch_end(&self) -> u64 {
        match self.limit.steps_per_epoch {
            Some(_) => self
                .len
                .min(self.steps_per_epoch().saturating_mul(self.global_batch)),
            None => self.len,
        }
    }

    /// How far a run is after the global batch that begins at `start`.
    pub fn after(&self, start: Position) -> Position {
        Position {
            sample: start.sample + self.batch_at(start),
            ..start
        }
    }

    /// Whether the global batch at `start` is the last of its epoch.
    pub fn ends_epoch(&self, start: Position) -> bool {
        self.next_batch(self.after(start))
            .is_none_or(|next| next.epoch != start.epoch)
    }

    /// Indices into the dataset of `rows` of the global batch that begins at `start`, a result of [`Self::next_batch`], as
    /// far as the batch has them.
    pub fn samples(&self, start: Position, rows: Range<u64>) -> impl Iterator<Item = u64> + use<> {
        let order = (self.shuffles).then(|| Permutation::new(self.len, self.seed, start.epoch));
        let end = rows.end.min(self.batch_at(start));
        let place = move |at: u64| order.as_ref().map_or(at, |order| order.at(at));
        (rows.start..end).map(move |row| place(start.sample + row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::Share;
    use proptest::prelude::*;

    /// All samples of a run from `position`, in the order of the global batches.
    fn run(sampler: &Sampler, mut position: Position) -> Vec<(u64, u64)> {
        let mut consumed = Vec::new();
        while let Some(start) = sampler.next_batch(position) {
            let samples = sampler.samples(start, 0..sampler.global_batch());
            consumed.extend(samples.map(|sample| (start.epoch, sample)));
            position = sampler.after(start);
        }
        consumed
    }

    proptest! {
        #[test]
        fn an_epoch_has_no_sample_twice(len in 1u64..500, seed: u64, batch in 1u64..20) {
            prop_assume!(batch <= len);
            let sampler = Sampler::new(len, seed, batch)?;
            let mut samples = run(&sampler, Position::default());
            prop_assert_eq!(samples.len() as u64, len / batch * batch);
            samples.sort_unstable();
            samples.dedup();
            prop_assert_eq!(samples.len() as u64, len / batch * batch);
        }

        #[test]
        fn an_epoch_may_have_every_sample_once(len in 1u64..500, seed: u64, batch in 1u64..600, epochs in 1u64..4) {
            let limit = EpochLimit { epochs, steps_per_epoch: None };
            let sampler = Sampler::of_all(len, seed, batch)?.limited(limit);
            let mut samples = run(&sampler, Position::default());
            prop_assert_eq!(samples.len() as u64, len * epochs);
            prop_assert_eq!(sampler.left_out(), 0);
            prop_assert_eq!(sampler.total_steps(), len.div_ceil(batch) * epochs);
            // Every step but an epoch's last is full, and the last one ends it.
            let (mut position, mut steps) = (Position::default(), 0);
            while let Some(start) = sampler.next_batch(position) {
                prop_assert_eq!(sampler.steps_left(position), sampler.total_steps() - steps);
                let is_last = start.sample + sampler.batch_at(start) == len;
                prop_assert_eq!(sampler.ends_epoch(start), is_last);
                prop_assert!(is_last || sampler.batch_at(start) == batch);
                position = sampler.after(start);
                steps += 1;
            }
            prop_assert_eq!(steps, sampler.total_steps());
            samples.sort_unstable();
            samples.dedup();
            prop_assert_eq!(samples.len() as u64, len * epochs);
        }

        #[test]
        fn the_mesh_does_not_change_a_global_batch(seed: u64, exponent in 0u32..4) {
            let (global_batch, dp_size) = (24usize, [1usize, 2, 3, 4][exponent as usize]);
            let sampler = Sampler::new(1000, seed, global_batch as u64)?;
            let start = Position { epoch: 3, sample: 48 };
            let mut joined = Vec::new();
            for dp_rank in 0..dp_size {
                let share = Share { dp_rank, dp_size, micro_batches: 2, batch_size: global_batch / dp_size / 2 };
                for micro_batch in 0..2 {
                    let rows = share.rows(micro_batch);
                    joined.extend(sampler.samples(start, rows.start as u64..rows.end as u64));
                }
            }
            let whole: Vec<u64> = sampler.samples(start, 0..24).collect();
            prop_assert_eq!(joined, whole);
        }

        #[test]
        fn resuming_is_continuing(seed: u64, before in 1u64..12, after in 1u64..12, steps in 0u64..8) {
            let (len, limit) = (100, EpochLimit { epochs: 3, steps_per_epoch: None });
            let first = Sampler::new(len, seed, before)?.limited(limit);
            let mut position = Position::default();
            for _ in 0..steps {
                position = first.after(first.next_batch(position).unwrap());
            }
            // Another batch size goes on with the very next sample of the same order.
            let second = Sampler::new(len, seed, after)?.limited(limit);
            let left = run(&second, position).len() as u64 / after;
            prop_assert_eq!(second.steps_left(position), left);
            let order = Permutation::new(len, seed, position.epoch);
            let start = second.next_batch(position).unwrap();
            prop_assert_eq!(start, position);
            let next = second.samples(start, 0..1).next().unwrap();
            prop_assert_eq!(next, order.at(position.sample));
            // The same batch size gives what the first run would have given.
            let whole = run(&first, Position::default());
            prop_assert_eq!(&run(&first, position), &whole[(steps * before) as usize..]);
        }
    }

    #[test]
    fn epochs_differ_and_end() {
        let limit = EpochLimit {
            epochs: 2,
            steps_per_epoch: None,
        };
        let sampler = Sampler::new(10, 7, 3).unwrap().limited(limit);
        assert_eq!((sampler.steps_per_epoch(), sampler.total_steps()), (3, 6));
        let samples = run(&sampler, Position::default());
        assert_eq!(samples.len(), 18);
        let (first, second) = samples.split_at(9);
        assert!(first.iter().all(|(epoch, _)| *epoch == 0));
        assert!(second.iter().all(|(epoch, _)| *epoch == 1));
        let values = |part: &[(u64, u64)]| part.iter().map(|(_, v)| *v).collect::<Vec<_>>();
        assert_ne!(values(first), values(second));
        assert!(sampler.ends_epoch(Position {
            epoch: 0,
            sample: 6
        }));
        assert!(!sampler.ends_epoch(Position {
            epoch: 0,
            sample: 3
        }));
    }

    #[test]
    fn in_order_every_sample_comes_once_and_in_its_place() {
        for batch in [1, 3, 10, 64] {
            let samples = run(&Sampler::in_order(10, batch).unwrap(), Position::default());
            let expected: Vec<(u64, u64)> = (0..10).map(|sample| (0, sample)).collect();
            assert_eq!(samples, expected, "{batch} a step");
        }
        assert_eq!(
            Sampler::in_order(0, 4).unwrap_err(),
            SamplerError::NoSamples
        );
    }

    #[test]
    fn a_limited_epoch_ends_early() {
        let limit = EpochLimit {
            epochs: 2,
            steps_per_epoch: Some(2),
        };
        let sampler = Sampler::new(10, 7, 3).unwrap().limited(limit);
        assert_eq!((sampler.steps_per_epoch(), sampler.total_steps()), (2, 4));
        assert_eq!(run(&sampler, Position::default()).len(), 12);
        assert!(sampler.ends_epoch(Position {
            epoch: 0,
            sample: 3
        }));
        let none = EpochLimit {
            epochs: 2,
            steps_per_epoch: Some(0),
        };
        assert_eq!(
            sampler.limited(none).next_batch(Position::default()),
            None,
            "no steps, no batch"
        );
    }

    #[test]
    fn a_limited_epoch_of_all_samples_has_no_more_than_there_are() {
        let limited = |steps| {
            let limit = EpochLimit {
                epochs: 2,
                steps_per_epoch: Some(steps),
            };
            Sampler::of_all(10, 7, 4).unwrap().limited(limit)
        };
        for (steps, samples, left_out) in [(1, 4, 6), (2, 8, 2), (3, 10, 0), (9, 10, 0)] {
            let sampler = limited(steps);
            assert_eq!(run(&sampler, Position::default()).len(), 2 * samples);
            assert_eq!(sampler.left_out(), left_out);
        }
        let endless = EpochLimit {
            epochs: u64::MAX,
            steps_per_epoch: None,
        };
        let sampler = Sampler::of_all(10, 7, 4).unwrap().limited(endless);
        assert_eq!(sampler.steps_left(Position::default()), u64::MAX);
    }

    #[test]
    fn too_little_data_is_refused_with_the_numbers() {
        let message = Sampler::new(5, 0, 8).unwrap_err().to_string();
        assert!(
            message.contains("5 samples, 3 fewer than one global batch of 8"),
            "{message}"
        );
        assert_eq!(Sampler::new(5, 0, 0).unwrap_err(), SamplerError::ZeroBatch);
        assert_eq!(
            Sampler::of_all(0, 0, 8).unwrap_err(),
            SamplerError::NoSamples
        );
        assert_eq!(Sampler::of_all(5, 0, 8).unwrap().total_steps(), 1);
    }
}
