//! One rank's engine for a small model, and steps of it.

use std::path::Path;
use std::sync::Arc;

use tandem_comm::{ProcessGroup, World};
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_parallel::{AutoTp, DeepSpeed, Precision, RandomInit, ShardingLevel};
use tandem_tensor::Device;
use tandem_trainer::{
    Engine, EngineSetup, MicroBatch, StepReport, TrainError, UpdateRule, train_step,
};

const SEQ: usize = 32;

/// What lies around a group on its way into the engine.
pub type Wrap = fn(Arc<dyn ProcessGroup>) -> Arc<dyn ProcessGroup>;

/// Nothing lies around it.
pub fn plain(group: Arc<dyn ProcessGroup>) -> Arc<dyn ProcessGroup> {
    group
}

/// A tied Qwen2 of two layers in fp32 with ZeRO-1, random weights.
pub fn engine(world: &World, tp: usize, dp: usize, wrap_tp: Wrap, wrap_dp: Wrap) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/golden/qwen2_tied");
    let config = ModelConfig::from_dir(&folder).unwrap();
    let tree = ModuleTree::new(&config);
    let strategy = DeepSpeed {
        zero_stage: ShardingLevel::Optimizer,
        autotp: AutoTp::with_overrides(&[]).unwrap(),
        precision: Precision::fp32(),
    }
    .strategy(&tree)
    .unwrap();
    let mesh = DeviceMesh::new(tp, dp).unwrap();
    let group = |name: &str, ranks: &[usize]| world.new_group(name, ranks).unwrap();
    let everyone: Vec<usize> = (0..world.size()).collect();
    let mut engine = Engine::new(EngineSetup {
        trains: true,
        lora: None,
        strategy,
        mesh,
        world: group("world", &everyone),
        tp: wrap_tp(group("tp", &mesh.tp_group(world.rank()))),
        experts: None,
        dp: wrap_dp(group("dp", &mesh.dp_group(world.rank()))),
        device: Device::Cpu,
        seq: SEQ,
        sequence_parallel: false,
        recompute: Recompute::Light,
        head_chunk_rows: 64,
        config,
    })
    .unwrap();
    let weights = RandomInit {
        seed: 1,
        initializer_range: engine.config.initializer_range,
    };
    engine.load(&weights).unwrap();
    engine
}

/// Two rows that depend on `seed`.
pub fn batch(seed: u64) -> MicroBatch {
    let ids: Vec<i64> = (0..2 * SEQ as u64)
        .map(|i| ((i * 7 + seed * 13) % 500) as i64)
        .collect();
    MicroBatch::new(&ids, &ids, SEQ, seed, Device::Cpu)
}

pub fn step(
    world: &World,
    engine: &mut Engine,
    step: u64,
    batch: MicroBatch,
) -> Result<StepReport, TrainError> {
    world.set_step(step);
    train_step(engine, &[batch], 1e-3, &UpdateRule::USUAL, step)
}
