//! The model of memory against peaks that were measured and recorded (docs/performance.md, 2026-11-25): Qwen2-0.5B in bf16, rows of
//! 512 tokens, on two cores. `cargo xtask bench plan` measures more, and anew.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use serde_json::json;
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_parallel::ShardingLevel::{self, Gradients, Optimizer, Parameters, Replicated};
use tandem_parallel::{Plan, Precision};
use tandem_plan::{Memory, Place, Settings, Share};

fn qwen2(layers: usize) -> ModelConfig {
    let json = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
        "num_hidden_layers": layers, "intermediate_size": 4864, "vocab_size": 151936, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true,
    });
    ModelConfig::from_json(json.as_object().unwrap()).unwrap()
}

fn memory(layers: usize, (tp, dp): (usize, usize), level: ShardingLevel) -> Memory {
    let config = qwen2(layers);
    let plan = Plan::declared(&ModuleTree::new(&config));
    let share = Share::new(&config, &plan, tp, false, None).unwrap();
    let settings = Settings {
        mesh: DeviceMesh::new(tp, dp).unwrap(),
        level,
        precision: Precision::bf16(),
        reshard_after_forward: level == Parameters,
        sequence_parallel: false,
        recompute: Recompute::Light,
        seq_length: 512,
        batch_size: 1,
        micro_batches: 1,
        head_chunk_rows: 512,
    };
    Memory::of(&share, &settings, Place::Cpu)
}

#[test]
fn recorded_peaks_are_predicted() {
    let mut off = Vec::new();
    for (layers, mesh, level, megabytes) in [
        (2, (2, 1), Parameters, 1750.0),
        (2, (1, 2), Parameters, 2443.0),
        (2, (1, 2), Optimizer, 2352.0),
        (2, (1, 2), Gradients, 2416.0),
        (2, (1, 2), Replicated, 3350.0),
        (2, (2, 2), Parameters, 1313.0),
        (2, (2, 2), Optimizer, 1267.0),
        (2, (2, 2), Gradients, 1299.0),
        (2, (2, 2), Replicated, 1766.0),
        (24, (2, 1), Parameters, 4907.0),
    ] {
        let memory = memory(layers, mesh, level);
        let planned = memory.total() as f64 / 1e6;
        let line = format!("{layers} layers, {mesh:?}, {level:?}: {planned:.0} of {megabytes} MB");
        println!("{line}");
        if (planned / megabytes - 1.0).abs() > 0.05 {
            off.push(line);
        }
    }
    assert!(off.is_empty(), "{off:#?}");
}
