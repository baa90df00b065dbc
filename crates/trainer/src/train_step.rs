//! One optimizer step: the path of the data, top to bottom, with every collective where it happens.
//!
//! These are all of them, in the order of the step, as one rank sees them. `tp` is its row of the mesh, `dp` its column and
//! `world` all ranks; where experts are spread, `ep` is the ranks that share them out, and of a unit of experts `dp` stands for those
//! with the same ones (`edp`). A group of one rank says nothing.
//!
//! | when                        | only at         | times   | group | operation      | bytes     | in                               |
//! |-----------------------------|-----------------|---------|-------|----------------|-----------|----------------------------------|
//! | is the row's batch one?     |                 | 1       | tp    | all_gather     | 8·tp      | parallel/checks.rs               |
//! | size of the global batch    |                 | 1       | dp    | all_reduce     | 16        | trainer/global_batch.rs          |
//! | ahead: unshard              | 3, ahead        | m       | dp    | all_gather     | p·unit    | parallel/flat_unit.rs            |
//! | ahead: embedding            | ahead           | m       | tp    | reduce_tokens  | r·T·H     | model/embedding.rs               |
//! | ahead: attention            | ahead           | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/attention.rs         |
//! |                             | ahead           | m·L     | tp    | reduce_tokens  | c·T·H     | model/layer/attention.rs         |
//! | ahead: MLP                  | ahead, cut      | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/mlp.rs               |
//! |                             | ahead, cut      | m·L     | tp    | reduce_tokens  | c·T·H     | model/layer/mlp.rs               |
//! | ahead: rows for each expert | ahead, spread   | m·L     | ep    | all_gather     | 8·ep·X    | model/layer/experts/dispatch.rs  |
//! | ahead: rows, and their sums | ahead, spread   | 2·m·L   | ep    | all_to_all     | c·S·H     | model/layer/experts/dispatch.rs  |
//! | ahead: weights of the rows  | ahead, spread   | m·L     | ep    | all_to_all     | 4·S       | model/layer/experts/dispatch.rs  |
//! |                             | ahead, spread   | m·L     | tp    | join_shares    | c·T·H     | model/tp_context.rs              |
//! | unshard for forward         | 3               | m       | dp    | all_gather     | p·unit    | parallel/flat_unit.rs            |
//! | embedding                   |                 | m       | tp    | reduce_tokens  | r·T·H     | model/embedding.rs               |
//! | attention                   |                 | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/attention.rs         |
//! | norm of q and k             | across          | m·L     | tp    | all_reduce     | 8·T       | model/layer/attention/qk_norm.rs |
//! |                             |                 | m·L     | tp    | reduce_tokens  | c·T·H     | model/layer/attention.rs         |
//! | MLP                         | cut             | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/mlp.rs               |
//! |                             | cut             | m·L     | tp    | reduce_tokens  | c·T·H     | model/layer/mlp.rs               |
//! | rows for each expert        | spread          | m·L     | ep    | all_gather     | 8·ep·X    | model/layer/experts/dispatch.rs  |
//! | rows to experts, and back   | spread          | 2·m·L   | ep    | all_to_all     | c·S·H     | model/layer/experts/dispatch.rs  |
//! | weights of the rows         | spread          | m·L     | ep    | all_to_all     | 4·S       | model/layer/experts/dispatch.rs  |
//! | sums of all tokens          | spread          | m·L     | tp    | join_shares    | c·T·H     | model/tp_context.rs              |
//! | head: its input             |                 | m       | tp    | gather_tokens  | c·T·H     | model/head.rs                    |
//! | head: softmax of a chunk    |                 | m·C     | tp    | all_gather     | 12·tp·R   | model/head.rs                    |
//! | head: its input's gradient  |                 | m       | tp    | reduce_tokens  | c·T·H     | model/head.rs                    |
//! | unshard for backward        | 3, reshard      | m·(L-1) | dp    | all_gather     | p·layer   | parallel/flat_unit.rs            |
//! |                             | 3, reshard      | m·(L-1) | dp    | all_gather     | p·experts | parallel/flat_unit.rs            |
//! | attention once more         | full            | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/attention.rs         |
//! | norm of q and k once more   | full, across    | m·L     | tp    | all_reduce     | 8·T       | model/layer/attention/qk_norm.rs |
//! |                             | full            | m·L     | tp    | reduce_tokens  | c·T·H     | model/layer/attention.rs         |
//! | MLP once more               | full, cut       | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/mlp.rs               |
//! |                             | full, cut       | m·L     | tp    | reduce_tokens  | c·T·H     | model/layer/mlp.rs               |
//! | experts once more           | full, spread    | m·L     | ep    | all_gather     | 8·ep·X    | model/layer/experts/dispatch.rs  |
//! |                             | full, spread    | 2·m·L   | ep    | all_to_all     | c·S·H     | model/layer/experts/dispatch.rs  |
//! |                             | full, spread    | m·L     | ep    | all_to_all     | 4·S       | model/layer/experts/dispatch.rs  |
//! |                             | full, spread    | m·L     | tp    | join_shares    | c·T·H     | model/tp_context.rs              |
//! | MLP backward                | cut             | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/mlp.rs               |
//! |                             | cut             | m·L     | tp    | reduce_tokens  | c·T·H     | model/layer/mlp.rs               |
//! | its norm once more          | light, cut      | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/residual.rs          |
//! | experts backward            | spread          | 2·m·L   | ep    | all_to_all     | c·S·H     | model/layer/experts/dispatch.rs  |
//! |                             | spread          | m·L     | ep    | all_to_all     | 4·S       | model/layer/experts/dispatch.rs  |
//! |                             | spread          | m·L     | tp    | join_shares    | c·T·H     | model/tp_context.rs              |
//! | attention backward          |                 | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/attention.rs         |
//! | norm of q and k backward    | across          | m·L     | tp    | all_reduce     | 8·T       | model/layer/attention/qk_norm.rs |
//! |                             |                 | m·L     | tp    | reduce_tokens  | c·T·H     | model/layer/attention.rs         |
//! | its norm once more          | light           | m·L     | tp    | gather_tokens  | c·T·H     | model/layer/residual.rs          |
//! | embedding backward          | trained         | m       | tp    | gather_tokens  | r·T·H     | model/embedding.rs               |
//! | sum of partial gradients    | trained, 0, 1   | 1       | tp    | all_reduce     | 4·partial | parallel/flat_unit.rs            |
//! |                             | trained, 2, 3   | m       | tp    | all_reduce     | 4·partial | parallel/flat_unit.rs            |
//! | reduction of gradients      | trained, 0      | 1       | dp    | all_reduce     | g·unit    | parallel/flat_unit.rs            |
//! |                             | trained, 1      | 1       | dp    | reduce_scatter | g·unit    | parallel/flat_unit.rs            |
//! |                             | trained, 2, 3   | m       | dp    | reduce_scatter | g·unit    | parallel/flat_unit.rs            |
//! | loss                        |                 | 1       | dp    | all_reduce     | 8         | trainer/outcome.rs               |
//! | load of the experts         | experts, cut    | 1       | dp    | all_reduce     | 16·E      | trainer/balance.rs               |
//! |                             | experts, spread | 1       | world | all_reduce     | 16·E      | trainer/balance.rs               |
//! | norm of the gradient        |                 | 1       | world | all_reduce     | 8         | parallel/grad_norm.rs            |
//! | updated parameters          | trained, 1, 2   | 1       | dp    | all_gather     | p·unit    | parallel/flat_unit.rs            |
//!
//! *Operation.* `reduce_tokens` and `gather_tokens` are the row's conversations about the residual stream (`TpContext`):
//! an all_reduce and nothing; with sequence parallelism a reduce_scatter and an all_gather. `join_shares` is an all_gather, and
//! nothing with sequence parallelism.
//!
//! *Only at.* The level of sharding, of 0 to 3: as in ZeRO, and 3 is FSDP. It is a unit's own
//! (`ShardingLevel::of_units`), and 0 where the column is one rank; adapters' is 1 at most. `trained` is a unit that is not frozen
//! below adapters. `light` and `full` say what is computed again
//! (`Recompute`), `reshard` is the strategy's `reshard_after_forward`; with `across`, q and k are normalised over the heads of
//! all ranks together (`QkNorm::AcrossHeads`). `experts` are those of a mixture; where a loss keeps them in balance, their load is
//! known before the first backward pass, for which several micro-batches look `ahead`. An MLP and experts are `cut` over the row, or
//! experts are `spread` over ranks.
//!
//! *Times.* `m` micro-batches, `L` layers, `C` chunks of the head's rows. A row with `unit` or `partial` is for each unit.
//!
//! *Bytes* are those of the whole tensor. `T` tokens of a micro-batch, `H` width of the residual stream, `R` rows of a
//! chunk, `X` experts of a layer, `E` of all layers together; `S` rows that the tokens of `ep` ranks make, one for each expert that a
//! token goes to. Elements on this rank of a `unit`, of a `layer`'s unit, of its spread `experts`, and of what is `partial` in a unit:
//! where each rank of the row has a part of the gradient's sum. Of an element in its kind (`Precision`): `p` of parameters, `c` of
//! matrix products, `r` of the residual stream, `g` of reduced gradients. Parameters of a frozen model are in the kind of products.
//!
//! Below adapters, a block whose input has none (of `q_proj,v_proj`, the MLP) does not compute its norm once more.
//!
//! *In* `crates/*/src`.
//!
//! `tests/collectives` records whole steps and holds them against this table, which it reads from this file. Only a step
//! that fails says more: it asks which ranks have the number that is not finite.

use std::time::Duration;

use tandem_model::{LayerSaved, Recompute, TokenFacts};
use tandem_tensor::{Accumulate, Device, Factor, Kind, Tensor};

use crate::balance::{Balance, ExpertReport};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::global_batch::GlobalBatch;
use crate::micro_batch::MicroBatch;
use crate::outcome::{Outcome, Read};
use crate::profile::Activity;
use crate::turn::Turn;
use crate::units::{self, EMBEDDING};
use crate::update_rule::UpdateRule;

/// What a step reports.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Mean cross entropy over all valid targets of the global batch, before the update; with what a loss on the balance of experts
    /// adds to it.
    pub loss: f64,
    /// What the experts got, where the model has any.
    pub experts: Option<ExpertReport>,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Valid targets of the global batch.
    pub n_tokens: u64,
    /// For how long the update waited until a save had copied the state.
    pub waited_for_copy: Duration,
}

/// Trains on one global batch, of which `micro_batches` is this rank's part. `step` counts from 1.
///
/// The loss is the mean over all valid targets of the global batch: it depends neither on the mesh nor on how the batch
/// is split into micro-batches.
///
/// # Errors
/// When a peer fails, ranks disagree, or loss or gradient is not finite; the parameters are then as before the step. On a device they
/// are not where a collective has failed behind the host's back.
pub fn train_step(
    engine: &mut Engine,
    micro_batches: &[MicroBatch],
    learning_rate: f64,
    rule: &UpdateRule,
    step: u64,
) -> Result<StepReport, TrainError> {
    let batch = engine.during(Activity::Agreement, |engine| {
        GlobalBatch::agree(engine, micro_batches, step)
    })?;
    let mut balance = Balance::new(engine, batch.real());
    if balance.looks_ahead(micro_batches.len()) {
        look_ahead(engine, micro_batches, &mut balance)?;
    }

    let mut loss_sum = Tensor::zeros([], (Kind::Double, engine.device));
    for (index, micro) in micro_batches.iter().enumerate() {
        let turn = Turn {
            is_first: index == 0,
            is_last: index + 1 == micro_batches.len(),
            ..Turn::in_training(engine, micro)
        };
        let (x, saved) = forward(engine, &turn)?;
        balance.after_forward(engine, &saved)?;
        let d_x = loss_and_head(engine, &turn, &x, batch.scale(), &mut loss_sum)?;
        drop(x);
        backward(engine, &turn, saved, &balance, d_x)?;
    }

    let outcome = engine.during(Activity::GradientNorm, |engine| {
        Outcome::add_up(engine, loss_sum, &batch, &mut balance)
    })?;
    let read = |engine: &mut Engine| {
        engine.during(Activity::GradientNorm, |engine| {
            outcome.read(engine, &batch, &balance, step)
        })
    };
    // What is read decides whether there is an update. On a device it decides there, and the host reads it when all is under way.
    let (known, unread) = match engine.device {
        Device::Cpu => (Some(read(engine)?), None),
        Device::Cuda(_) => (None, Some(outcome.unread_norm(&batch, rule))),
    };
    let norm = known.as_ref().map(|known| known.grad_norm);
    let update = rule.step(learning_rate, norm, step);
    // A save may still be copying what the update is about to change.
    let waited_for_copy = engine.during(Activity::Save, |engine| engine.wait_until_copied());
    engine.during(Activity::Optimizer, |engine| {
        let mut units = engine.units.iter_mut();
        units.try_for_each(|unit| unit.update(&update, rule.weight_decay_on, unread.as_ref()))
    })?;
    let Read {
        loss,
        experts,
        grad_norm,
        n_tokens,
    } = match known {
        Some(known) => known,
        None => read(engine)?,
    };
    Ok(StepReport {
        loss,
        experts,
        grad_norm,
        n_tokens,
        waited_for_copy,
    })
}

/// What all experts will get of the batch, by a forward pass of every micro-batch.
fn look_ahead(
    engine: &mut Engine,
    micro_batches: &[MicroBatch],
    balance: &mut Balance,
) -> Result<(), TrainError> {
    for micro in micro_batches {
        let turn = Turn::in_training(engine, micro);
        let (_, saved) = forward(engine, &turn)?;
        balance.add(&saved);
        for unit in 0..engine.units.len() {
            engine.reshard(unit);
        }
    }
    balance.agree(engine)
}

/// Embedding and layers. While layer i computes, the parameters of layer i + 1 are gathered.
pub(crate) fn forward(
    engine: &mut Engine,
    turn: &Turn<'_>,
) -> Result<(Tensor, Vec<LayerSaved>), TrainError> {
    let mut x = engine.during(Activity::Embedding, |engine| embed(engine, turn))?;
    let mut saved = Vec::with_capacity(engine.layers.len());
    for layer in 0..engine.layers.len() {
        let (out, kept) = engine.during(Activity::Layer(layer), |engine| {
            layer_forward(engine, turn, layer, x, engine.recompute)
        })?;
        x = out;
        saved.push(kept);
    }
    Ok((x, saved))
}

pub(crate) fn embed(engine: &mut Engine, turn: &Turn<'_>) -> Result<Tensor, TrainError> {
    // The others of the step are copied while this one is computed.
    turn.micro.arrive()?;
    let flat = engine.unshard(EMBEDDING)?;
    engine.start_unshard_layer(0)?;
    let table = engine.table(&flat);
    let x = engine
        .embedding
        .forward(&table, turn.micro.ids(), &turn.tp)?;
    // A table that is not the head's too is not needed again: backward has its gradient only.
    if !engine.config.tie_word_embeddings {
        engine.reshard(EMBEDDING);
    }
    Ok(x)
}

pub(crate) fn layer_forward(
    engine: &mut Engine,
    turn: &Turn<'_>,
    layer: usize,
    x: Tensor,
    recompute: Recompute,
) -> Result<(Tensor, LayerSaved), TrainError> {
    let unit = units::of_layer(layer);
    let flat = engine.unshard(unit)?;
    engine.start_unshard_layer(layer + 1)?;
    let weights = engine.adapted_tensors(layer, &flat, turn.dropout.as_ref())?;
    let facts = TokenFacts {
        documents: turn.micro.documents(),
        counted: turn.counted(),
    };
    let result = engine.layers[layer].forward(&weights, x, facts, &turn.tp, recompute)?;
    // The last layer is the first that backward needs: it stays.
    if engine.strategy.reshard_after_forward && layer + 1 < engine.layers.len() {
        engine.reshard_layer(layer);
    }
    Ok(result)
}

/// Final norm, head and loss: forward and gradient in one pass over chunks of rows.
fn loss_and_head(
    engine: &mut Engine,
    turn: &Turn<'_>,
    x: &Tensor,
    scale: Factor<'_>,
    loss_sum: &mut Tensor,
) -> Result<Tensor, TrainError> {
    let unit = engine.head_unit();
    engine.during(Activity::Head, |engine| {
        let flat = engine.unshard(unit)?;
        let gradient = (!engine.is_frozen()).then(|| engine.gradient(unit));
        let gradient = gradient.map(|flat| engine.head_tensors(&flat));
        let output = engine.head.loss_and_gradient(
            &engine.head_tensors(&flat),
            gradient.as_ref(),
            engine.units[unit].accumulate(turn.is_first),
            x,
            turn.micro.targets(),
            scale,
            &turn.tp,
        )?;
        *loss_sum += output.loss_sum;
        // A tied table gets the embedding's gradient too.
        if unit != EMBEDDING {
            start_reduce(engine, unit, turn)?;
            engine.reshard(unit);
        }
        Ok(output.d_x)
    })
}

/// Layers and embedding in reverse. While layer i computes, the gradient of layer i + 1 is reduced and the parameters
/// of layer i - 1 are gathered.
fn backward(
    engine: &mut Engine,
    turn: &Turn<'_>,
    saved: Vec<LayerSaved>,
    balance: &Balance,
    d_x: Tensor,
) -> Result<(), TrainError> {
    let mut d_x = d_x;
    for (layer, saved) in saved.into_iter().enumerate().rev() {
        d_x = engine.during(Activity::LayerBackward(layer), |engine| {
            layer_backward(engine, turn, layer, saved, balance, d_x)
        })?;
    }
    engine.during(Activity::EmbeddingBackward, |engine| {
        embedding_backward(engine, turn, &d_x)
    })?;
    engine.during(Activity::GradientNorm, |engine| {
        (0..engine.units.len()).try_for_each(|unit| engine.finish_reduce(unit))
    })?;
    Ok(())
}

fn layer_backward(
    engine: &mut Engine,
    turn: &Turn<'_>,
    layer: usize,
    saved: LayerSaved,
    balance: &Balance,
    d_out: Tensor,
) -> Result<Tensor, TrainError> {
    let unit = units::of_layer(layer);
    let flat = engine.unshard(unit)?;
    if layer > 0 {
        engine.start_unshard_layer(layer - 1)?;
    }
    let weights = engine.adapted_tensors(layer, &flat, turn.dropout.as_ref())?;
    let (trained, gradients) = engine.layer_gradients(layer);
    let accumulate = engine.layer_accumulate(layer, trained.unwrap_or(unit), turn.is_first);
    let d_x = engine.layers[layer].backward(
        &weights,
        gradients.as_ref(),
        accumulate,
        saved,
        d_out,
        balance.gradient(turn.counted()),
        &turn.tp,
    )?;
    engine.reshard_layer(layer);
    for trained in trained.into_iter().chain(engine.expert_unit(layer)) {
        start_reduce(engine, trained, turn)?;
    }
    // At most two gradients of layers are on their way, so at most two buffers are out; and as many of experts.
    engine.finish_reduce(unit + 1)?;
    if let Some(experts) = engine.expert_unit(layer + 1) {
        engine.finish_reduce(experts)?;
    }
    Ok(d_x)
}

fn embedding_backward(
    engine: &mut Engine,
    turn: &Turn<'_>,
    d_x: &Tensor,
) -> Result<(), TrainError> {
    if engine.is_frozen() {
        engine.reshard(EMBEDDING);
        return Ok(());
    }
    let gradient = engine.gradient(EMBEDDING);
    let d_table = engine.table(&gradient);
    // A tied table already holds the head's gradient; otherwise the sparse rows are added to zeros.
    let is_first = engine.units[EMBEDDING].accumulate(turn.is_first) == Accumulate::First;
    if !engine.config.tie_word_embeddings && is_first {
        d_table.zero_();
    }
    engine
        .embedding
        .backward(&d_table, d_x, turn.micro.ids(), &turn.tp)?;
    engine.reshard(EMBEDDING);
    start_reduce(engine, EMBEDDING, turn)
}

/// Sends a unit's gradient on its way, if it is time: over the row what ranks hold parts of, then all over the column.
fn start_reduce(engine: &mut Engine, unit: usize, turn: &Turn<'_>) -> Result<(), TrainError> {
    let unit = &mut engine.units[unit];
    if unit.is_trained() && unit.reduces_after(turn.is_last) {
        unit.sum_partial_gradients()?;
        unit.start_reduce(turn.is_first)?;
    }
    Ok(())
}
