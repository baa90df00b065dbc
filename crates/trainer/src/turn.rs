//! One micro-batch's turn in a step: what it is, and what is decided for it before any layer computes.

use tandem_model::DropoutRows;
use tandem_parallel::TpTokens;
use tandem_tensor::experts::Counted;

use crate::engine::Engine;
use crate::micro_batch::MicroBatch;

/// One micro-batch's turn in the step.
pub(crate) struct Turn<'a> {
    pub(crate) micro: &'a MicroBatch,
    /// The row, for this many tokens.
    pub(crate) tp: TpTokens,
    /// Whether gradients begin with this one.
    pub(crate) is_first: bool,
    /// Whether they end with it.
    pub(crate) is_last: bool,
    /// What decides on the dropout of adapters' inputs, in training.
    pub(crate) dropout: Option<DropoutRows>,
}

impl<'a> Turn<'a> {
    /// The turn of a micro-batch that is alone, and not trained on.
    pub(crate) fn only(engine: &Engine, micro: &'a MicroBatch) -> Self {
        Self {
            micro,
            tp: engine.tp.for_tokens(micro.tokens),
            is_first: true,
            is_last: true,
            dropout: None,
        }
    }

    /// Of the tokens that this rank's routers see, which are no padding.
    pub(crate) fn counted(&self) -> Counted<'_> {
        let routed = self.tp.routed();
        match &self.micro.counted[..] {
            [] => Counted::default(),
            of_row => Counted {
                // Where each rank routes a share, the host does.
                on_device: self
                    .micro
                    .counted_there
                    .as_ref()
                    .filter(|_| routed == (0..of_row.len())),
                tokens: &of_row[routed],
            },
        }
    }

    /// As [`Self::only`], in training: adapters' inputs are dropped out.
    pub(crate) fn in_training(engine: &Engine, micro: &'a MicroBatch) -> Self {
        Self {
            dropout: engine.dropout_rows(micro),
            ..Self::only(engine, micro)
        }
    }
}
