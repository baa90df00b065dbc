//! Looking at a sharded model from outside: whole tensors and logits, for small models.

use tandem_comm::ReduceOp;
use tandem_model::ParamSpec;
use tandem_parallel::OptimizerState;
use tandem_tensor::{Device, Kind, Tensor, cpu};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::micro_batch::MicroBatch;
use crate::train_step::forward;
use crate::turn::Turn;

/// One whole tensor, put together from the pieces of all ranks; the same on every rank.
///
/// Every element belongs to one rank, so adding the pieces into zeros is exact.
///
/// # Errors
/// When a peer fails.
pub fn gather_tensor(
    engine: &Engine,
    spec: &ParamSpec,
    state: OptimizerState,
) -> Result<Vec<f32>, TrainError> {
    let mut whole = vec![0f32; spec.numel()];
    for unit in engine.units.iter().filter(|unit| unit.is_trained()) {
        for piece in unit.pieces(state) {
            if piece.tensor != spec.name {
                continue;
            }
            let values = cpu::read_f32(&piece.values);
            for run in piece.slice.runs() {
                whole[run.source..run.source + run.len]
                    .copy_from_slice(&values[run.target..run.target + run.len]);
            }
        }
    }
    let sum = Tensor::from_slice(&whole).to_device(engine.device);
    engine.world.all_reduce(&sum, ReduceOp::Sum)?.wait()?;
    Ok(cpu::read_f32(&sum))
}

/// fp32 logits `[seq, vocabulary]` of one row of tokens, whose documents begin at `starts`; the same on every rank. Every rank
/// passes the same row.
///
/// # Errors
/// When a peer fails.
pub fn first_row_logits(
    engine: &mut Engine,
    row: &[i64],
    starts: &[u32],
) -> Result<Vec<f32>, TrainError> {
    let micro = MicroBatch::new(row, row, row.len(), 0, engine.device)
        .with_documents(vec![starts.to_vec()], row.len());
    let turn = Turn::only(engine, &micro);
    let (x, _) = forward(engine, &turn)?;
    let flat = engine.unshard(engine.head_unit())?;
    let weights = engine.head_tensors(&flat);
    let local = engine.head.logits(&weights, &x, &turn.tp)?;
    for unit in 0..engine.units.len() {
        engine.reshard(unit);
    }

    // Every column of the row fills its part of the vocabulary.
    let (seq, vocab) = (row.len() as i64, engine.config.vocab_size as i64);
    let whole = Tensor::zeros([seq, vocab], (Kind::Float, engine.device));
    let part = engine.head.vocab.clone();
    whole
        .narrow(1, part.start, part.end - part.start)
        .copy_(&local);
    engine.tp.group.all_reduce(&whole, ReduceOp::Sum)?.wait()?;
    Ok(cpu::read_f32(&whole.to_device(Device::Cpu).flatten(0, -1)))
}
