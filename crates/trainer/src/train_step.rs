//! One optimizer step: the path of the data, top to bottom, with every collective where it happens.
//!
//! Collectives over the **row** (tensor parallel) are inside the modules, at `tp.reduce_tokens` (one per attention, MLP
//! and embedding, forward and backward) and `tp.gather_stats` (one per chunk of the loss): see `crates/model`.
//! Collectives over the **column** (data parallel) are the calls on units here: `unshard` (all-gather), `start_reduce`
//! (reduce-scatter or all-reduce) and `update` (all-gather of what was updated); which of them talk depends on the
//! sharding level: see the table in `crates/parallel/src/flat_unit.rs`.

use std::time::Duration;

use tandem_comm::{ReduceOp, all_gather_numbers};
use tandem_model::LayerSaved;
use tandem_parallel::{check_same_batch, global_grad_norm};
use tandem_tensor::adamw::AdamWStep;
use tandem_tensor::linear::Accumulate;
use tandem_tensor::{Kind, Tensor};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::micro_batch::MicroBatch;
use crate::profile::{Activity, span};

/// How the gradient becomes an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateRule {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm; 0 leaves them as they are.
    pub max_grad_norm: f64,
}

/// What a step leaves to tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean cross entropy over all valid targets of the global batch, before the update.
    pub loss: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Valid targets of the global batch.
    pub n_tokens: u64,
    /// For how long the update waited until a save had copied the state.
    pub waited_for_copy: Duration,
}

/// Which of the step's micro-batches this is.
#[derive(Debug, Clone, Copy)]
struct Position {
    first: bool,
    last: bool,
}

/// Trains on one global batch, of which `micro_batches` is this rank's part. `step` counts from 1.
///
/// The loss is the mean over all valid targets of the global batch: it depends neither on the mesh nor on how the batch
/// is split into micro-batches.
///
/// # Errors
/// When a peer fails, ranks disagree, or loss or gradient is not finite; the parameters are then as before the step.
pub fn train_step(
    engine: &mut Engine,
    micro_batches: &[MicroBatch],
    learning_rate: f64,
    rule: &UpdateRule,
    step: u64,
) -> Result<StepReport, TrainError> {
    let hash = micro_batches
        .iter()
        .fold(0u64, |hash, micro| hash.rotate_left(17) ^ micro.hash);
    let agreement = span(&engine.profiler, Activity::Agreement);
    check_same_batch(engine.tp.group.as_ref(), hash, step, engine.device)?;
    let n_tokens = count_targets(engine, micro_batches, step)?;
    drop(agreement);
    let scale = 1.0 / n_tokens as f64;

    let mut loss_sum = Tensor::zeros([], (Kind::Double, engine.device));
    for (index, micro) in micro_batches.iter().enumerate() {
        let position = Position {
            first: index == 0,
            last: index + 1 == micro_batches.len(),
        };
        let (x, saved) = forward(engine, micro)?;
        let d_x = loss_and_head(engine, micro, position, &x, scale, &mut loss_sum)?;
        drop(x);
        backward(engine, micro, position, saved, d_x)?;
    }

    let norm = span(&engine.profiler, Activity::GradientNorm);
    let own_loss = loss_sum.double_value();
    engine.dp.all_reduce(&loss_sum, ReduceOp::Sum)?.wait()?;
    let loss = loss_sum.double_value() * scale;
    let grad_norm = global_grad_norm(&engine.units, engine.world.as_ref(), engine.device)?;
    refuse_non_finite(engine, "loss", loss, own_loss.is_finite(), step)?;
    refuse_non_finite(
        engine,
        "gradient norm",
        grad_norm,
        own_gradient_is_finite(engine),
        step,
    )?;

    drop(norm);

    // The clip factor is folded into the update: no pass over the gradients for it.
    let gradient_scale = match rule.max_grad_norm {
        limit if limit > 0.0 => (limit / (grad_norm + 1e-6)).min(1.0),
        _ => 1.0,
    };
    let update = AdamWStep {
        learning_rate,
        beta1: rule.beta1,
        beta2: rule.beta2,
        eps: rule.eps,
        weight_decay: rule.weight_decay,
        step,
        gradient_scale,
    };
    // A save may still be copying what the update is about to change.
    let copy = span(&engine.profiler, Activity::Save);
    let waited_for_copy = engine.wait_until_copied();
    drop(copy);
    let _optimizer = span(&engine.profiler, Activity::Optimizer);
    for unit in &mut engine.units {
        unit.update(&update)?;
    }
    Ok(StepReport {
        loss,
        grad_norm,
        n_tokens,
        waited_for_copy,
    })
}

/// Valid targets of the global batch: summed over the column, since every column sees all of it.
fn count_targets(
    engine: &Engine,
    micro_batches: &[MicroBatch],
    step: u64,
) -> Result<u64, TrainError> {
    let own: usize = micro_batches.iter().map(|micro| micro.valid_targets).sum();
    let count = Tensor::from_slice(&[own as i64]).to_device(engine.device);
    engine.dp.all_reduce(&count, ReduceOp::Sum)?.wait()?;
    match count.get(0).int64_value() {
        0 => Err(TrainError::NoTargets { step }),
        count => Ok(count as u64),
    }
}

/// Embedding and layers. While layer i computes, the parameters of layer i + 1 are gathered.
pub(crate) fn forward(
    engine: &mut Engine,
    micro: &MicroBatch,
) -> Result<(Tensor, Vec<LayerSaved>), TrainError> {
    let tp_row = engine.tp.clone();
    let tp = tp_row.for_tokens(micro.tokens);
    let last_unit = engine.units.len() - 1;

    let embedding = span(&engine.profiler, Activity::Embedding);
    let flat = engine.units[0].unshard(&mut engine.pool)?;
    if last_unit > 0 {
        engine.units[1].start_unshard(&mut engine.pool)?;
    }
    let mut x = engine
        .embedding
        .forward(&engine.table(&flat), &micro.ids, &tp)?;
    // A table that is not the head's too is not needed again: backward has its gradient only.
    if !engine.config.tie_word_embeddings {
        engine.units[0].reshard(&mut engine.pool);
    }
    drop(embedding);

    let mut saved = Vec::with_capacity(engine.layers.len());
    for layer in 0..engine.layers.len() {
        let _span = span(&engine.profiler, Activity::Layer(layer));
        let unit = layer + 1;
        let flat = engine.units[unit].unshard(&mut engine.pool)?;
        if unit < last_unit {
            engine.units[unit + 1].start_unshard(&mut engine.pool)?;
        }
        let weights = engine.layer_tensors(layer, &flat);
        let (out, kept) = engine.layers[layer].forward(&weights, x, &tp, engine.recompute)?;
        x = out;
        saved.push(kept);
        // The last layer is the first that backward needs: it stays.
        if engine.strategy.reshard_after_forward && layer + 1 < engine.layers.len() {
            engine.units[unit].reshard(&mut engine.pool);
        }
    }
    Ok((x, saved))
}

/// Final norm, head and loss: forward and gradient in one pass over chunks of rows.
fn loss_and_head(
    engine: &mut Engine,
    micro: &MicroBatch,
    position: Position,
    x: &Tensor,
    scale: f64,
    loss_sum: &mut Tensor,
) -> Result<Tensor, TrainError> {
    let _span = span(&engine.profiler, Activity::Head);
    let tp_row = engine.tp.clone();
    let tp = tp_row.for_tokens(micro.tokens);
    let unit = engine.head_unit();
    let flat = engine.units[unit].unshard(&mut engine.pool)?;
    let gradient = engine.units[unit].gradient(&mut engine.pool);
    let output = engine.head.loss_and_gradient(
        &engine.head_tensors(&flat),
        &engine.head_tensors(&gradient),
        engine.units[unit].accumulate(position.first),
        x,
        &micro.targets,
        scale,
        &tp,
    )?;
    *loss_sum += output.loss_sum;
    if !engine.config.tie_word_embeddings {
        engine.units[unit].start_reduce(position.first, position.last)?;
        engine.units[unit].reshard(&mut engine.pool);
    }
    Ok(output.d_x)
}

/// Layers and embedding in reverse. While layer i computes, the gradient of layer i + 1 is reduced and the parameters
/// of layer i - 1 are gathered.
fn backward(
    engine: &mut Engine,
    micro: &MicroBatch,
    position: Position,
    saved: Vec<LayerSaved>,
    d_x: Tensor,
) -> Result<(), TrainError> {
    let tp_row = engine.tp.clone();
    let tp = tp_row.for_tokens(micro.tokens);
    let mut d_x = d_x;
    for (layer, saved) in saved.into_iter().enumerate().rev() {
        let _span = span(&engine.profiler, Activity::LayerBackward(layer));
        let unit = layer + 1;
        let flat = engine.units[unit].unshard(&mut engine.pool)?;
        if layer > 0 {
            engine.units[unit - 1].start_unshard(&mut engine.pool)?;
        }
        let gradient = engine.units[unit].gradient(&mut engine.pool);
        let weights = engine.layer_tensors(layer, &flat);
        let gradients = engine.layer_tensors(layer, &gradient);
        let accumulate = engine.units[unit].accumulate(position.first);
        d_x = engine.layers[layer].backward(&weights, &gradients, accumulate, saved, d_x, &tp)?;
        engine.units[unit].reshard(&mut engine.pool);
        engine.units[unit].start_reduce(position.first, position.last)?;
        // At most two gradients are on their way, so at most two buffers are out.
        if unit + 1 < engine.units.len() {
            engine.units[unit + 1].finish_reduce(&mut engine.pool)?;
        }
    }

    let embedding = span(&engine.profiler, Activity::EmbeddingBackward);
    let tied = engine.config.tie_word_embeddings;
    let gradient = engine.units[0].gradient(&mut engine.pool);
    let d_table = engine.table(&gradient);
    // A tied table already holds the head's gradient; otherwise the sparse rows are added to zeros.
    if !tied && engine.units[0].accumulate(position.first) == Accumulate::First {
        d_table.zero_();
    }
    engine.embedding.backward(&d_table, &d_x, &micro.ids, &tp)?;
    engine.units[0].reshard(&mut engine.pool);
    engine.units[0].start_reduce(position.first, position.last)?;
    drop(embedding);
    let _rest = span(&engine.profiler, Activity::GradientNorm);
    for unit in &mut engine.units {
        unit.finish_reduce(&mut engine.pool)?;
    }
    Ok(())
}

fn own_gradient_is_finite(engine: &Engine) -> bool {
    engine
        .units
        .iter()
        .all(|unit| unit.gradient_sum_of_squares().is_finite())
}

/// Every rank sees the same `value`, so all of them stop here together; a second collective finds who was first.
fn refuse_non_finite(
    engine: &Engine,
    what: &'static str,
    value: f64,
    own_is_finite: bool,
    step: u64,
) -> Result<(), TrainError> {
    if value.is_finite() {
        return Ok(());
    }
    let own = [i64::from(!own_is_finite)];
    let all = all_gather_numbers(engine.world.as_ref(), &own, engine.device)?;
    let ranks = (0..all.len()).filter(|&rank| all[rank] == [1]).collect();
    Err(TrainError::NotFinite {
        what,
        value,
        step,
        ranks,
    })
}
