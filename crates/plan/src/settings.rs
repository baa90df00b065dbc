//! How a model is trained, in numbers: what memory and time depend on besides the model and the device.

use tandem_mesh::DeviceMesh;
use tandem_model::{ExpertsDims, Recompute};
use tandem_parallel::{Precision, ShardingLevel};

/// How a step is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The ranks.
    pub mesh: DeviceMesh,
    /// What is cut over the column.
    pub level: ShardingLevel,
    /// Which numbers are of which kind.
    pub precision: Precision,
    /// Gathered parameters are freed after forward.
    pub reshard_after_forward: bool,
    /// The residual stream is cut over the row by token.
    pub sequence_parallel: bool,
    /// What backward computes again.
    pub recompute: Recompute,
    /// Tokens of a row of the batch.
    pub seq_length: usize,
    /// Rows of a micro-batch of a rank.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// Rows of the head whose logits exist at the same time.
    pub head_chunk_rows: usize,
}

impl Settings {
    /// Ranks of a row.
    pub(crate) fn tp(&self) -> usize {
        self.mesh.tp_size()
    }

    /// Ranks of a column.
    pub(crate) fn dp(&self) -> usize {
        self.mesh.dp_size()
    }

    /// Tokens of a micro-batch, which all ranks of a row see. No flag makes it overflow.
    pub(crate) fn tokens(&self) -> u128 {
        self.batch_size as u128 * self.seq_length as u128
    }

    /// Of them, those of a rank in the residual stream; of uneven parts, the largest.
    pub(crate) fn own_tokens(&self) -> u128 {
        match self.sequence_parallel {
            true => self.shared_tokens(),
            false => self.tokens(),
        }
    }

    /// Tokens for which a rank chooses experts: all of the row, or its share of them where experts are spread over ranks.
    pub(crate) fn routed_tokens(&self, experts: &ExpertsDims) -> u128 {
        match experts.is_spread() {
            true => self.shared_tokens(),
            false => self.tokens(),
        }
    }

    /// A rank's part of the tokens of its row; of uneven ones, the largest.
    fn shared_tokens(&self) -> u128 {
        self.tokens().div_ceil(self.tp() as u128)
    }

    /// Whether the residual stream is cut.
    pub(crate) fn cuts_tokens(&self) -> bool {
        self.sequence_parallel && self.tp() > 1
    }

    /// Tokens of a step, all ranks together.
    pub fn tokens_per_step(&self) -> f64 {
        self.tokens() as f64 * self.micro_batches as f64 * self.dp() as f64
    }

    /// Bytes of a number that matrix products read and write.
    pub(crate) fn product_bytes(&self) -> u128 {
        self.precision.matmul.elt_size_in_bytes() as u128
    }

    /// Bytes of a number of the residual stream.
    pub(crate) fn residual_bytes(&self) -> u128 {
        self.precision.residual.elt_size_in_bytes() as u128
    }
}
