//! What the training step is fed with.

use crate::error::DataError;
use crate::label::IGNORED_LABEL;
use crate::sampler::Position;

/// One micro-batch of one data parallel rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Sequences, as many in every batch; see [`Self::step_samples`].
    pub rows: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Tokens, `[rows, seq]`.
    pub input_ids: Vec<i64>,
    /// `[rows, seq]`, aligned with `input_ids`: position `t` predicts `labels[t + 1]`. [`IGNORED_LABEL`] where there is
    /// nothing to predict.
    pub labels: Vec<i64>,
    /// `[rows, seq]`: 1 for a token, 0 for padding, which is on the right.
    pub attention_mask: Vec<u8>,
    /// For each row, where its documents begin: 0, and in ascending order further ones that see nothing of those before them.
    pub documents: Vec<Vec<u32>>,
    /// Epoch, from 0.
    pub epoch: u64,
    /// The optimizer step within its epoch, from 0.
    pub step_in_epoch: u64,
    /// Position of this batch's first row in the epoch's order.
    pub first_sample: u64,
    /// Samples of the whole optimizer step, over all ranks and micro-batches. Rows beyond them, in the last step of an
    /// epoch, are nothing but padding.
    pub step_samples: u64,
    /// Whether this step is the last of its epoch.
    pub ends_epoch: bool,
    /// Hash of `input_ids`, `labels` and documents, the same on every machine: ranks that must see the same batch compare it.
    pub hash: u64,
}

impl Batch {
    /// Targets that count in the loss: labels after each row's first position that are not ignored.
    pub fn targets(&self) -> usize {
        self.labels
            .chunks(self.seq.max(1))
            .flat_map(|row| row.iter().skip(1))
            .filter(|label| **label != IGNORED_LABEL)
            .count()
    }

    /// The hash of a batch of these tokens, labels and documents, as little-endian machines (all that PyTorch supports) hold
    /// them.
    pub(crate) fn hash_of(input_ids: &[i64], labels: &[i64], documents: &[Vec<u32>]) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytemuck::cast_slice(input_ids));
        hasher.update(bytemuck::cast_slice(labels));
        for (row, starts) in documents
            .iter()
            .enumerate()
            .filter(|(_, starts)| starts.len() > 1)
        {
            hasher.update(&(row as u64).to_le_bytes());
            hasher.update(bytemuck::cast_slice(starts));
        }
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// Where the training loop gets its batches from.
pub trait BatchSource: Send {
    /// The micro-batches of the next optimizer step, in order; `None` when the last epoch is over.
    ///
    /// # Errors
    /// Whatever kept the batch from being built. A source that failed once stays failed.
    fn next_step(&mut self) -> Result<Option<Vec<Batch>>, DataError>;

    /// Where the run is after the steps that [`Self::next_step`] has given: what a checkpoint needs to continue there.
    fn position(&self) -> Position;

    /// Optimizer steps of a whole epoch.
    fn steps_per_epoch(&self) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_stable_and_see_everything() {
        let plain = [vec![0]];
        let hash = Batch::hash_of(&[1, 2, 3], &[1, 2, IGNORED_LABEL], &plain);
        assert_ne!(hash, Batch::hash_of(&[1, 2, 3], &[1, 2, 3], &plain));
        assert_ne!(
            hash,
            Batch::hash_of(&[1, 3, 2], &[1, 2, IGNORED_LABEL], &plain)
        );
        assert_ne!(
            hash,
            Batch::hash_of(&[1, 2, 3], &[1, 2, IGNORED_LABEL], &[vec![0, 2]])
        );
        assert_eq!(hash, PINNED, "ranks of different builds would disagree");
    }

    const PINNED: u64 = 14_044_338_410_437_724_679;

    #[test]
    fn the_first_label_of_a_row_is_no_target() {
        let batch = Batch {
            rows: 2,
            seq: 3,
            input_ids: vec![1, 2, 3, 4, 5, 5],
            labels: vec![1, 2, 3, 4, 5, IGNORED_LABEL],
            attention_mask: vec![1, 1, 1, 1, 1, 0],
            documents: vec![vec![0]; 2],
            epoch: 0,
            step_in_epoch: 0,
            first_sample: 0,
            step_samples: 2,
            ends_epoch: false,
            hash: 0,
        };
        assert_eq!(batch.targets(), 3);
    }
}
