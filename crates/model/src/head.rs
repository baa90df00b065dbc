//! Final norm, output head and loss: one pass over chunks of rows, forward and gradient together.

use std::ops::Range;

use tandem_tensor::cross_entropy::{self, Bend, Normaliser, Objective};
use tandem_tensor::rms_norm::{self, NormSpec};
use tandem_tensor::scratch::Scratch;
use tandem_tensor::{Accumulate, Factor, linear};
use tandem_tensor::{Kind, Tensor};

use crate::error::ModelError;
use crate::tensors::HeadTensors;
use crate::tp_context::TpContext;

/// The vocabulary-parallel head.
#[derive(Debug, Clone)]
pub struct Head {
    /// Vocabulary entries of this rank's shard.
    pub vocab: Range<i64>,
    /// What the final norm computes.
    pub norm: NormSpec,
    /// What becomes of the products before they are logits.
    pub bend: Bend,
    /// The square of a token's logarithm of the sum of all `e^logit`, times this, is added to its loss: it keeps logits from
    /// drifting (arXiv 2204.02311, section 5). 0 is none.
    pub z_loss: f64,
    /// Kind of the matrix products.
    pub matmul: Kind,
    /// Rows whose logits exist at the same time.
    pub chunk_rows: usize,
    /// Where a chunk's logits are.
    pub scratch: Scratch,
}

/// What the head leaves behind.
#[derive(Debug)]
pub struct HeadOutput {
    /// Sum of the cross entropy over all valid targets of these tokens: one fp64 number on the device, the same on all
    /// ranks of the row. Without what `z_loss` adds, which is in the gradient only.
    pub loss_sum: Tensor,
    /// Gradient of `scale * (loss_sum + z_loss)` with respect to this rank's tokens of the last layer's output.
    pub d_x: Tensor,
}

/// A chunk of rows after its forward pass.
struct Chunk {
    /// Of this rank's part of the vocabulary, in the scratch buffer: until the next chunk.
    logits: Tensor,
    /// What the ranks of the row agreed on.
    normaliser: Normaliser,
}

impl Head {
    /// Loss and all gradients. `x` is this rank's tokens of the residual stream; `targets` (i64, all tokens) holds
    /// [`cross_entropy::IGNORE`] where there is none. Without `gradients`, the head is frozen.
    ///
    /// The logits of a chunk become their own gradient in place, and the full logits never exist.
    ///
    /// # Errors
    /// When a peer fails.
    #[expect(
        clippy::too_many_arguments,
        reason = "one pass does what is otherwise four calls"
    )]
    pub fn loss_and_gradient(
        &self,
        weights: &HeadTensors,
        gradients: Option<&HeadTensors>,
        accumulate: Accumulate,
        x: &Tensor,
        targets: &Tensor,
        scale: Factor<'_>,
        tp: &dyn TpContext,
    ) -> Result<HeadOutput, ModelError> {
        let (normed, rstd) = rms_norm::forward(x, &weights.norm, self.norm, self.matmul);
        let hidden = tp.gather_tokens(&normed)?;
        let tokens = hidden.size()[0];
        let d_hidden = hidden.empty_like();
        let mut loss_sum = Tensor::zeros([], (Kind::Double, x.device()));
        let mut weight_gradient = accumulate;
        let weight = weights.weight.to_kind(self.matmul);
        let objective = Objective {
            scale,
            z_loss: self.z_loss as f32,
        };

        let own = || self.vocab.clone();
        for (start, rows) in self.chunks(tokens) {
            let hidden = hidden.narrow(0, start, rows);
            let targets = targets.narrow(0, start, rows);
            let Chunk { logits, normaliser } = self.chunk(&hidden, &weight, &targets, tp)?;
            loss_sum += normaliser.loss.sum(Kind::Double);
            let (bend, agreed) = (self.bend, &normaliser);
            cross_entropy::logits_to_gradient_(&logits, &targets, own(), agreed, bend, objective);
            let d_logits = logits;
            linear::backward_input_into(&d_hidden.narrow(0, start, rows), &d_logits, &weight);
            if let Some(gradients) = gradients {
                linear::backward_weight(&gradients.weight, &d_logits, &hidden, weight_gradient);
                weight_gradient = Accumulate::Add;
            }
        }

        let d_normed = tp.reduce_tokens(d_hidden)?;
        let (d_x, d_norm) = rms_norm::backward(&d_normed, x, &weights.norm, &rstd, self.norm);
        if let Some(gradients) = gradients {
            linear::store(&gradients.norm, &d_norm, accumulate);
        }
        Ok(HeadOutput { loss_sum, d_x })
    }

    /// The sum of the loss alone, the same number as [`HeadOutput::loss_sum`]; for evaluation.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn loss(
        &self,
        weights: &HeadTensors,
        x: &Tensor,
        targets: &Tensor,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let (normed, _) = rms_norm::forward(x, &weights.norm, self.norm, self.matmul);
        let hidden = tp.gather_tokens(&normed)?;
        let mut loss_sum = Tensor::zeros([], (Kind::Double, x.device()));
        let weight = weights.weight.to_kind(self.matmul);
        for (start, rows) in self.chunks(hidden.size()[0]) {
            let hidden = hidden.narrow(0, start, rows);
            let targets = targets.narrow(0, start, rows);
            let chunk = self.chunk(&hidden, &weight, &targets, tp)?;
            loss_sum += chunk.normaliser.loss.sum(Kind::Double);
        }
        Ok(loss_sum)
    }

    /// First row and number of rows of every chunk.
    fn chunks(&self, tokens: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
        let most = self.chunk_rows.max(1) as i64;
        let starts = (0..tokens).step_by(most as usize);
        starts.map(move |start| (start, most.min(tokens - start)))
    }

    /// The logits of a chunk of normed rows, and what turns them into a loss.
    fn chunk(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &Tensor,
        tp: &dyn TpContext,
    ) -> Result<Chunk, ModelError> {
        let shape = [hidden.size()[0], self.vocab.end - self.vocab.start];
        let logits = self.scratch.take(&shape, self.matmul, hidden.device());
        linear::forward_into(&logits, hidden, weight);
        let stats = cross_entropy::local_stats(&logits, targets, self.vocab.clone(), self.bend);
        let stats = tp.gather_stats(&stats)?;
        let normaliser = cross_entropy::combine(&stats, targets);
        Ok(Chunk { logits, normaliser })
    }

    /// The logits of this rank's part of the vocabulary, fp32 `[tokens, local vocabulary]`; for evaluation.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn logits(
        &self,
        weights: &HeadTensors,
        x: &Tensor,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let (normed, _) = rms_norm::forward(x, &weights.norm, self.norm, self.matmul);
        let hidden = tp.gather_tokens(&normed)?;
        let logits = linear::forward(&hidden, &weights.weight, None);
        cross_entropy::bend_(&logits, self.bend);
        Ok(logits.to_kind(Kind::Float))
    }
}
