//! Trains a tiny model, alone on this machine: `cargo run -p tandem-trainer --example tiny_model`.

use std::error::Error;
use std::sync::Arc;

use serde_json::json;
use tandem_comm::{ProcessGroup, SingleGroup};
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_parallel::{Fsdp, Precision, RandomInit};
use tandem_tensor::Device;
use tandem_trainer::{Engine, EngineSetup, MicroBatch, UpdateRule, train_step};

fn main() -> Result<(), Box<dyn Error>> {
    // What a Hugging Face `config.json` says; `ModelConfig::from_dir` reads one.
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
        "vocab_size": 16, "max_position_embeddings": 64,
    });
    let config = ModelConfig::from_json(config.as_object().ok_or("not an object")?)?;
    let strategy = Fsdp {
        precision: Precision::fp32(),
        reshard_after_forward: true,
    };
    let (device, seq) = (Device::Cpu, 16);
    // A mesh of one rank. The ranks of a larger one get their groups from a `tandem_comm::World`.
    let alone = |name| -> Arc<dyn ProcessGroup> { Arc::new(SingleGroup::new(name, 0, device)) };
    let mut engine = Engine::new(EngineSetup {
        trains: true,
        lora: None,
        strategy: strategy.strategy(&ModuleTree::new(&config)),
        config,
        mesh: DeviceMesh::new(1, 1)?,
        world: alone("world"),
        tp: alone("tp"),
        experts: None,
        dp: alone("dp"),
        device,
        seq,
        sequence_parallel: false,
        recompute: Recompute::Light,
        head_chunk_rows: 1024,
    })?;
    engine.load(&RandomInit {
        seed: 42,
        initializer_range: engine.config.initializer_range,
    })?;
    let rule = UpdateRule {
        weight_decay: 0.0,
        ..UpdateRule::USUAL
    };

    // Four rows that count from 0 to 15: each token says what the next one is.
    let rows: Vec<i64> = (0..4 * seq as i64).map(|token| token % 16).collect();
    let mut losses = Vec::new();
    for step in 1..=40 {
        let batch = MicroBatch::new(&rows, &rows, seq, 0, device);
        let report = train_step(&mut engine, &[batch], 1e-2, &rule, step)?;
        println!("step {step}: loss {:.4}", report.loss);
        losses.push(report.loss);
    }
    assert!(losses[39] < losses[0] / 10.0, "it has not learned to count");
    Ok(())
}
