//! The engine of a rank: the same for training, for `tandem replay`, for `tandem bench`, and, less what trains, for `tandem eval`.

use tandem_model::ModelConfig;
use tandem_model::lora::LoraConfig;
use tandem_parallel::Strategy;
use tandem_trainer::{Engine, EngineSetup};

use crate::failure::{Failure, Outcome};
use crate::ranks::Ranks;
use crate::spec::EngineSpec;

/// Adapters that are trained in the place of the model, and the seed of their dropout.
pub type Lora = (LoraConfig, u64);

/// What an engine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Training.
    Training,
    /// Evaluation alone: without gradients and optimizer states, which are most of the memory.
    Evaluation,
}

/// Builds it for rows of `seq` tokens, without weights. `strategy` is what `spec.strategy` makes of the model.
pub fn engine(
    spec: &EngineSpec,
    config: &ModelConfig,
    strategy: Strategy,
    seq: usize,
    ranks: &Ranks,
    lora: Option<&Lora>,
    purpose: Purpose,
) -> Outcome<Engine> {
    Engine::new(EngineSetup {
        trains: purpose == Purpose::Training,
        lora: lora.cloned(),
        config: config.clone(),
        strategy,
        mesh: spec.mesh,
        world: ranks.everyone.clone(),
        tp: ranks.tp.clone(),
        dp: ranks.dp.clone(),
        experts: ranks.experts.clone(),
        device: ranks.device,
        seq,
        sequence_parallel: spec.sequence_parallel,
        recompute: spec.recompute(),
        head_chunk_rows: spec.head_chunk_rows,
    })
    .map_err(Failure::train)
}
