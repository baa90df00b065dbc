//! Batches that were recorded: the same to every program that trains on them.

use thiserror::Error;

use crate::batch::{Batch, BatchSource};
use crate::error::DataError;
use crate::sampler::Position;
use crate::share::{Share, ShareError};

/// Recorded batches, `[steps, global_batch, seq]` each.
#[derive(Debug, Clone)]
pub struct RecordedArrays {
    /// Optimizer steps.
    pub steps: usize,
    /// Rows of each.
    pub global_batch: usize,
    /// Tokens of a row.
    pub seq: usize,
    /// Tokens.
    pub input_ids: Vec<i64>,
    /// Labels, as in [`Batch`].
    pub labels: Vec<i64>,
    /// 1 for a token, 0 for padding; without it there is no padding.
    pub attention_mask: Option<Vec<i64>>,
}

/// Gives recorded batches in their order, once.
#[derive(Debug)]
pub struct RecordedBatches {
    arrays: RecordedArrays,
    share: Share,
    step: usize,
}

/// Why a recording cannot be split as asked for.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RecordedError {
    /// An array of another size than the shape says.
    #[error(
        "recorded {array} has {found} elements, but {steps} steps x {global_batch} rows x {seq} tokens are {expected}"
    )]
    Shape {
        /// Its name.
        array: &'static str,
        /// Its size.
        found: usize,
        /// Steps.
        steps: usize,
        /// Rows of a step.
        global_batch: usize,
        /// Tokens of a row.
        seq: usize,
        /// The size it should have.
        expected: usize,
    },
    /// Rows that would be left over.
    #[error(
        "the recorded global batch of {global_batch} rows cannot be split evenly over \
         {dp_size} data parallel ranks x {micro_batches} micro-batches: choose a divisor"
    )]
    Uneven {
        /// Rows of a step.
        global_batch: usize,
        /// Ranks.
        dp_size: usize,
        /// Micro-batches of a rank.
        micro_batches: usize,
    },
    /// Ranks that cannot be.
    #[error(transparent)]
    Share(#[from] ShareError),
}

impl RecordedBatches {
    /// The recording as data parallel rank `dp_rank` of `dp_size` sees it, in `micro_batches` a step.
    ///
    /// # Errors
    /// Arrays that do not fit the shape; a global batch that cannot be split evenly.
    pub fn new(
        arrays: RecordedArrays,
        dp_rank: usize,
        dp_size: usize,
        micro_batches: usize,
    ) -> Result<Self, RecordedError> {
        arrays.check()?;
        let share = Share {
            dp_rank,
            dp_size,
            batch_size: 1,
            micro_batches,
        };
        let parts = share.checked()?.global_batch();
        if !arrays.global_batch.is_multiple_of(parts) {
            return Err(RecordedError::Uneven {
                global_batch: arrays.global_batch,
                dp_size,
                micro_batches,
            });
        }
        let share = Share {
            batch_size: arrays.global_batch / parts,
            ..share
        };
        let share = share.checked()?;
        Ok(Self {
            arrays,
            share,
            step: 0,
        })
    }
}

impl RecordedArrays {
    fn check(&self) -> Result<(), RecordedError> {
        let rows = self.steps.saturating_mul(self.global_batch);
        let expected = rows.saturating_mul(self.seq);
        let mask = self.attention_mask.as_ref().map_or(expected, Vec::len);
        let sizes = [
            ("input_ids", self.input_ids.len()),
            ("labels", self.labels.len()),
            ("attention_mask", mask),
        ];
        match sizes.into_iter().find(|(_, found)| *found != expected) {
            None => Ok(()),
            Some((array, found)) => Err(RecordedError::Shape {
                array,
                found,
                steps: self.steps,
                global_batch: self.global_batch,
                seq: self.seq,
                expected,
            }),
        }
    }
}

impl BatchSource for RecordedBatches {
    fn next_step(&mut self) -> Result<Option<Vec<Batch>>, DataError> {
        let arrays = &self.arrays;
        if self.step == arrays.steps {
            return Ok(None);
        }
        let first_row = self.step * arrays.global_batch;
        let batches = (0..self.share.micro_batches)
            .map(|index| {
                let rows = self.share.rows(index);
                let cells =
                    (first_row + rows.start) * arrays.seq..(first_row + rows.end) * arrays.seq;
                let mask = arrays.attention_mask.as_ref();
                let input_ids = arrays.input_ids[cells.clone()].to_vec();
                let labels = arrays.labels[cells.clone()].to_vec();
                Batch {
                    rows: rows.len(),
                    seq: arrays.seq,
                    hash: Batch::hash_of(&input_ids, &labels),
                    input_ids,
                    labels,
                    attention_mask: mask.map_or_else(
                        || vec![1; cells.len()],
                        |mask| {
                            mask[cells.clone()]
                                .iter()
                                .map(|&m| u8::from(m != 0))
                                .collect()
                        },
                    ),
                    epoch: 0,
                    step_in_epoch: self.step as u64,
                    first_sample: (first_row + rows.start) as u64,
                    step_samples: arrays.global_batch as u64,
                    ends_epoch: self.step + 1 == arrays.steps,
                }
            })
            .collect();
        self.step += 1;
        Ok(Some(batches))
    }

    fn position(&self) -> Position {
        Position {
            epoch: 0,
            sample: (self.step * self.arrays.global_batch) as u64,
        }
    }

    fn steps_per_epoch(&self) -> u64 {
        self.arrays.steps as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrays() -> RecordedArrays {
        RecordedArrays {
            steps: 3,
            global_batch: 4,
            seq: 2,
            input_ids: (0..24).collect(),
            labels: (100..124).collect(),
            attention_mask: Some((0..24).map(|cell| i64::from(cell % 2 == 0)).collect()),
        }
    }

    #[test]
    fn every_split_gives_the_same_rows() {
        for (dp_size, micro_batches) in [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4)] {
            let mut ranks: Vec<RecordedBatches> = (0..dp_size)
                .map(|rank| RecordedBatches::new(arrays(), rank, dp_size, micro_batches).unwrap())
                .collect();
            let (mut ids, mut labels, mut mask) = (Vec::new(), Vec::new(), Vec::new());
            for step in 0..3 {
                for rank in &mut ranks {
                    let batches = rank.next_step().unwrap().unwrap();
                    assert_eq!(batches.len(), micro_batches);
                    for batch in batches {
                        assert_eq!((batch.seq, batch.step_in_epoch), (2, step));
                        assert_eq!(batch.ends_epoch, step == 2);
                        ids.extend(batch.input_ids);
                        labels.extend(batch.labels);
                        mask.extend(batch.attention_mask.into_iter().map(i64::from));
                    }
                }
            }
            assert_eq!(ids, arrays().input_ids);
            assert_eq!(labels, arrays().labels);
            assert_eq!(Some(mask), arrays().attention_mask);
            assert_eq!(ranks[0].next_step().unwrap(), None);
            assert_eq!(ranks[0].position().sample, 12);
        }
    }

    #[test]
    fn recordings_that_do_not_fit_are_refused() {
        let error = RecordedBatches::new(arrays(), 0, 3, 1).unwrap_err();
        assert!(
            error.to_string().contains("4 rows cannot be split evenly"),
            "{error}"
        );
        let mut short = arrays();
        short.labels.pop();
        let error = RecordedBatches::new(short, 0, 1, 1).unwrap_err();
        assert!(
            error.to_string().contains("recorded labels has 23"),
            "{error}"
        );
        let error = RecordedBatches::new(arrays(), 2, 2, 1).unwrap_err();
        assert!(matches!(error, RecordedError::Share(_)), "{error}");
    }
}
