//! One forward and backward's worth of tokens, on the device.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use tandem_comm::Upload;
use tandem_data::Batch;
use tandem_tensor::attention::Documents;
use tandem_tensor::cross_entropy::IGNORE;
use tandem_tensor::experts::counted_factors;
use tandem_tensor::{Device, Tensor};

use crate::error::TrainError;
use crate::feed::Feed;

/// Rows of equal length.
#[derive(Debug)]
pub struct MicroBatch {
    /// i64 `[rows * seq]`.
    ids: Tensor,
    /// i64 `[rows * seq]`: what each position must predict, [`IGNORE`] where there is nothing.
    targets: Tensor,
    /// The documents of rows that have several, which then do not see each other.
    documents: Option<Arc<Documents>>,
    /// Which tokens are no padding; empty where all are.
    pub counted: Vec<bool>,
    /// The same as [`counted_factors`] on the device, where some are padding and it is not the CPU.
    pub counted_there: Option<Tensor>,
    /// Tokens, padding included.
    pub tokens: usize,
    /// Positions with a target.
    pub valid_targets: usize,
    /// Hash of the data, for comparing ranks.
    pub hash: u64,
    /// The pass over the data.
    pub epoch: u64,
    /// The number of the first row in the order of the epoch.
    pub first_row: u64,
    /// Copies to the device that nobody has waited for.
    under_way: RefCell<Vec<Upload>>,
    has_arrived: Cell<bool>,
}

impl MicroBatch {
    /// A loader's batch, on its way to where `feed` ends: see [`Self::arrive`].
    pub(crate) fn of(batch: &Batch, feed: &mut Feed) -> Result<Self, TrainError> {
        let targets = shifted(&batch.labels, batch.seq);
        let mut under_way = Vec::new();
        let ids = feed.copy(&batch.input_ids, &mut under_way)?;
        let on_device = feed.copy(&targets, &mut under_way)?;
        let is_device = feed.device().is_cuda();
        let copy = is_device.then_some(|bounds: &[i32]| feed.copy(bounds, &mut under_way));
        let documents = Documents::copied(batch.documents.clone(), batch.seq, copy)?;
        let micro = Self {
            documents: documents.map(Arc::new),
            under_way: RefCell::new(under_way),
            has_arrived: Cell::new(!is_device),
            ..Self::of_tensors(ids, on_device, &targets, batch.hash)
        };
        Ok(micro
            .with_mask(&batch.attention_mask)
            .at(batch.epoch, batch.first_sample))
    }

    /// What the device is given from now on comes after the copies to it. The host does not wait.
    pub(crate) fn arrive(&self) -> Result<(), TrainError> {
        self.has_arrived.set(true);
        let mut under_way = self.under_way.take().into_iter();
        under_way.try_for_each(|upload| upload.wait().map_err(TrainError::Feed))
    }

    /// i64 `[rows * seq]`, once it has [arrived](Self::arrive); so are the others.
    pub(crate) fn ids(&self) -> &Tensor {
        self.arrived(&self.ids)
    }

    /// i64 `[rows * seq]`: what each position must predict, [`IGNORE`] where there is nothing.
    pub(crate) fn targets(&self) -> &Tensor {
        self.arrived(&self.targets)
    }

    /// The documents of rows that have several, which then do not see each other.
    pub(crate) fn documents(&self) -> Option<&Arc<Documents>> {
        self.arrived(&self.documents).as_ref()
    }

    fn arrived<'a, T>(&self, input: &'a T) -> &'a T {
        debug_assert!(
            self.has_arrived.get(),
            "the device would read what is still being copied to it"
        );
        input
    }

    /// The same at this place of the data's order.
    pub fn at(self, epoch: u64, first_row: u64) -> Self {
        Self {
            epoch,
            first_row,
            ..self
        }
    }

    /// From rows in Hugging Face's convention: `labels` aligned with `ids`, so position `t` predicts `labels[t + 1]`
    /// and the last position of a row predicts nothing.
    ///
    /// Padding is on the right, where causal attention lets no real position see it; so the attention needs no padding
    /// mask, and ignored labels keep padding out of loss and gradient.
    ///
    /// # Panics
    /// When the slices are not whole rows of `seq`.
    pub fn new(ids: &[i64], labels: &[i64], seq: usize, hash: u64, device: Device) -> Self {
        assert!(seq > 0 && ids.len() == labels.len() && ids.len().is_multiple_of(seq));
        let targets = shifted(labels, seq);
        let there = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Self::of_tensors(there(ids), there(&targets), &targets, hash)
    }

    /// From `ids` and `on_device`, the targets, which the host has as well.
    fn of_tensors(ids: Tensor, on_device: Tensor, targets: &[i64], hash: u64) -> Self {
        Self {
            tokens: targets.len(),
            valid_targets: targets.iter().filter(|&&target| target != IGNORE).count(),
            ids,
            targets: on_device,
            documents: None,
            counted: Vec::new(),
            counted_there: None,
            hash,
            epoch: 0,
            first_row: 0,
            under_way: RefCell::default(),
            has_arrived: Cell::new(true),
        }
    }

    /// The same with tokens that are padding, where `mask [rows * seq]` is 0.
    ///
    /// # Panics
    /// When there are not as many tokens.
    pub fn with_mask(self, mask: &[u8]) -> Self {
        assert_eq!(mask.len(), self.tokens, "one for every token");
        let counted: Vec<bool> = match mask.contains(&0) {
            true => mask.iter().map(|&bit| bit != 0).collect(),
            false => Vec::new(),
        };
        let device = self.ids.device();
        let is_needed = device.is_cuda() && !counted.is_empty();
        Self {
            counted_there: is_needed.then(|| counted_factors(&counted, device)),
            counted,
            ..self
        }
    }

    /// Tokens that are no padding.
    pub fn real_tokens(&self) -> usize {
        let padding = self.counted.iter().filter(|counted| !**counted).count();
        self.tokens - padding
    }

    /// The same with rows of several documents each, which begin at `starts`. Whose first token is nobody's target is for the
    /// labels to say.
    ///
    /// # Panics
    /// When there are not as many rows, or their starts are not in them.
    pub fn with_documents(self, starts: Vec<Vec<u32>>, seq: usize) -> Self {
        assert_eq!(starts.len() * seq, self.tokens, "starts for every row");
        let documents = Documents::new(starts, seq, self.ids.device()).map(Arc::new);
        Self { documents, ..self }
    }
}

/// What each position of rows of `seq` must predict: the label of the next.
fn shifted(labels: &[i64], seq: usize) -> Vec<i64> {
    let rows = labels.chunks(seq);
    rows.flat_map(|row| row[1..].iter().copied().chain([IGNORE]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_shift_within_their_row() {
        let batch = MicroBatch::new(
            &[1, 2, 3, 4, 5, 6],
            &[1, 2, -100, 4, 5, 6],
            3,
            0,
            Device::Cpu,
        );
        let targets: Vec<i64> = batch.targets.to_vec();
        assert_eq!(targets, [2, -100, -100, 5, 6, -100]);
        assert_eq!((batch.tokens, batch.valid_targets), (6, 3));
        assert!(batch.documents.is_none());
        assert!(
            batch
                .with_documents(vec![vec![0], vec![0, 1]], 3)
                .documents
                .is_some()
        );
    }
}
