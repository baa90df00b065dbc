//! The loss of a whole dataset under the parameters as they are: forward passes, and nothing that training would notice.
//!
//! Rows come in the dataset's order, in batches of `batch_size` for each rank of the column. Every rank does as many batches
//! as any other: one that has no rows left computes padding, which has no targets. Sums of losses and targets are added in
//! fp64, so the mean depends neither on the mesh nor on the size of batches, beyond the rounding of a row's own loss.
//!
//! What a layer would keep for the backward pass is dropped at once, and no gradient is written.
//!
//! These are all collectives of an evaluation, as the table at the top of `train_step.rs` lists those of a step, in the same
//! words; `m` are the batches of one rank.
//!
//! | when                        | only at | times | group | operation     | bytes   | in                               |
//! |-----------------------------|---------|-------|-------|---------------|---------|----------------------------------|
//! | unshard                     | 3       | m     | dp    | all_gather    | p·unit  | parallel/flat_unit.rs            |
//! | embedding                   |         | m     | tp    | reduce_tokens | r·T·H   | model/embedding.rs               |
//! | attention                   |         | m·L   | tp    | gather_tokens | c·T·H   | model/layer/attention.rs         |
//! | norm of q and k             | across  | m·L   | tp    | all_reduce    | 8·T     | model/layer/attention/qk_norm.rs |
//! |                             |         | m·L   | tp    | reduce_tokens | c·T·H   | model/layer/attention.rs         |
//! | MLP                         | cut     | m·L   | tp    | gather_tokens | c·T·H   | model/layer/mlp.rs               |
//! |                             | cut     | m·L   | tp    | reduce_tokens | c·T·H   | model/layer/mlp.rs               |
//! | rows for each expert        | spread  | m·L   | ep    | all_gather    | 8·ep·X  | model/layer/experts/dispatch.rs  |
//! | rows to experts, and back   | spread  | 2·m·L | ep    | all_to_all    | c·S·H   | model/layer/experts/dispatch.rs  |
//! | weights of the rows         | spread  | m·L   | ep    | all_to_all    | 4·S     | model/layer/experts/dispatch.rs  |
//! | sums of all tokens          | spread  | m·L   | tp    | join_shares   | c·T·H   | model/tp_context.rs              |
//! | head: its input             |         | m     | tp    | gather_tokens | c·T·H   | model/head.rs                    |
//! | head: softmax of a chunk    |         | m·C   | tp    | all_gather    | 12·tp·R | model/head.rs                    |
//! | were the row's batches one? |         | 1     | tp    | all_gather    | 8·tp    | parallel/checks.rs               |
//! | sums of losses and targets  |         | 1     | dp    | all_reduce    | 16      | trainer/evaluate.rs              |
//!
//! Between two batches the caller may say more: the training loop asks whether the run is to stop.

use std::sync::Arc;
use std::time::Instant;

use tandem_comm::ReduceOp;
use tandem_data::{BatchSource, DataError, Loader, LoaderOptions, Position, Rows, Sampler, Share};
use tandem_model::Recompute;
use tandem_parallel::check_same_batch;
use tandem_tensor::{Kind, Tensor};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::events::EvalMetrics;
use crate::micro_batch::MicroBatch;
use crate::profile::Activity;
use crate::train_step::{embed, layer_forward};
use crate::turn::Turn;

/// What is evaluated.
#[derive(Clone)]
pub struct EvalSet {
    /// The rows.
    pub rows: Arc<dyn Rows>,
    /// Rows of one forward pass of a rank.
    pub batch_size: usize,
    /// Only the rows of the first so many batches of this size, however many ranks share them; 0 is all.
    pub max_batches: u64,
}

impl EvalSet {
    /// Rows that are evaluated.
    pub fn rows_used(&self) -> u64 {
        let all = self.rows.len();
        match self.max_batches {
            0 => all,
            limit => all.min(limit.saturating_mul(self.batch_size as u64)),
        }
    }

    /// Batches that each of `dp_size` ranks computes.
    pub fn batches(&self, dp_size: usize) -> u64 {
        let at_once = (self.batch_size * dp_size) as u64;
        self.rows_used().div_ceil(at_once)
    }
}

/// Mean cross entropy over all valid targets of `set`, after the optimizer step `step`. All ranks call it together and get
/// the same numbers. `between` is called after every batch; where it says false, on all ranks, there is no result.
///
/// # Errors
/// When a peer fails, ranks see different rows, or no row has a target.
pub fn evaluate(
    engine: &mut Engine,
    set: &EvalSet,
    step: u64,
    between: &mut dyn FnMut(&Engine) -> Result<bool, TrainError>,
) -> Result<Option<EvalMetrics>, TrainError> {
    let begun = Instant::now();
    let mut loader = loader(engine, set).map_err(|error| TrainError::Data(Box::new(error)))?;
    let mut loss_sum = Tensor::zeros([], (Kind::Double, engine.device));
    let (mut targets, mut hash) = (0, 0u64);
    let mut next = || {
        let batches = loader.next_step();
        batches.map_err(|error| TrainError::Data(Box::new(error)))
    };
    while let Some(batches) = next()? {
        for batch in &batches {
            let micro = MicroBatch::of(batch, &mut engine.feed)?;
            hash = hash.rotate_left(17) ^ micro.hash;
            targets += micro.valid_targets;
            loss_sum += engine.during(Activity::Evaluation, |engine| loss(engine, &micro))?;
        }
        if !between(engine)? {
            return Ok(None);
        }
    }
    check_same_batch(engine.tp.group.as_ref(), hash, step, engine.device)?;

    // Counts are exact in fp64 as far as anybody can count.
    let targets = Tensor::from_slice(&[targets as f64]).to_device(engine.device);
    let sums = Tensor::cat(&[loss_sum.view([1]), targets], 0);
    engine.dp.all_reduce(&sums, ReduceOp::Sum)?.wait()?;
    let (loss_sum, targets) = (sums.get(0).double_value(), sums.get(1).double_value());
    engine.check_groups()?;
    if targets == 0.0 {
        return Err(TrainError::NoEvalTargets {
            rows: set.rows_used(),
        });
    }
    let eval_loss = loss_sum / targets;
    Ok(Some(EvalMetrics {
        step,
        eval_loss,
        perplexity: eval_loss.exp(),
        eval_tokens: targets as u64,
        eval_seconds: begun.elapsed().as_secs_f64(),
    }))
}

/// This rank's batches. Each is like a step of training of one micro-batch, so rows are read as training reads them.
fn loader(engine: &Engine, set: &EvalSet) -> Result<Loader, DataError> {
    let share = Share {
        dp_rank: engine.coords.dp_rank,
        dp_size: engine.dp.size(),
        batch_size: set.batch_size,
        micro_batches: 1,
    };
    let sampler = Sampler::in_order(set.rows_used(), share.global_batch() as u64)?;
    let options = LoaderOptions {
        share,
        start: Position::default(),
    };
    Ok(Loader::new(Arc::clone(&set.rows), sampler, options)?)
}

/// The sum of the loss over the targets of one batch: one fp64 number on the device. While layer i computes, the parameters
/// of layer i + 1 are gathered.
fn loss(engine: &mut Engine, micro: &MicroBatch) -> Result<Tensor, TrainError> {
    let turn = Turn::only(engine, micro);
    let mut x = embed(engine, &turn)?;
    for layer in 0..engine.layers.len() {
        // The only thing that is kept then is the layer's input, and that goes here.
        let (out, _) = layer_forward(engine, &turn, layer, x, Recompute::Full)?;
        x = out;
        engine.reshard_layer(layer);
    }
    let unit = engine.head_unit();
    let flat = engine.unshard(unit)?;
    let weights = engine.head_tensors(&flat);
    let loss = engine.head.loss(&weights, &x, micro.targets(), &turn.tp)?;
    engine.reshard(unit);
    Ok(loss)
}
