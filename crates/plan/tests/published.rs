//! The model of cost against numbers that others have published for GPUs, with their configurations. docs/plan.md has the same
//! table, and says where the model is off and why; its rows are held against this file's.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use serde_json::{Value, json};
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_parallel::{Plan, Precision, ShardingLevel};
use tandem_plan::{Device, Kernels, Memory, Place, Settings, Share, StepTime};

const DOCS: &str = include_str!("../../../docs/plan.md");

fn llama(hidden: usize, layers: usize, heads: usize, inner: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "hidden_size": hidden,
        "num_attention_heads": heads, "num_key_value_heads": 8, "intermediate_size": inner,
        "vocab_size": 128256, "max_position_embeddings": 131072,
    })
}

fn qwen3_32b() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 64, "hidden_size": 5120,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 25600,
        "vocab_size": 151936, "max_position_embeddings": 40960,
    })
}

/// What somebody measured.
struct Published {
    /// As in the table of the docs.
    name: &'static str,
    model: Value,
    mesh: (usize, usize),
    seq_length: usize,
    batch_size: usize,
    recompute: Recompute,
    kernels: Kernels,
    /// Tokens per second and GPU.
    tokens_per_s: f64,
    /// GiB of a GPU, as PyTorch's allocator reserved them, where that was published.
    memory_gib: Option<f64>,
    /// How far the prediction may be off: rows where the docs say why have more.
    tolerance: f64,
}

/// All on H100 with 96 GB HBM2e at 500 W and 400 Gbit/s a GPU: torchtitan's docs/performance.md (2024-12),
/// benchmarks/asyncTP_llama3_h100_2025-06_torchtitan.md, and its pull request 1690 (2025-09).
fn published() -> Vec<Published> {
    use Kernels::{Fused, Operators};
    use Recompute::{Full, Light};
    let llama_8b = || llama(4096, 32, 32, 14336);
    let llama_70b = || llama(8192, 80, 64, 28672);
    let row = |name, model, mesh, (seq_length, batch_size), (recompute, kernels), tokens_per_s| {
        Published {
            name,
            model,
            mesh,
            seq_length,
            batch_size,
            recompute,
            kernels,
            tokens_per_s,
            memory_gib: None,
            tolerance: 0.2,
        }
    };
    vec![
        Published {
            memory_gib: Some(77.0),
            ..row(
                "Llama-3.1-8B, FSDP 8, compiled",
                llama_8b(),
                (1, 8),
                (8192, 2),
                (Light, Fused),
                6667.0,
            )
        },
        Published {
            memory_gib: Some(82.4),
            ..row(
                "Llama-3.1-8B, FSDP 8, eager",
                llama_8b(),
                (1, 8),
                (8192, 2),
                (Light, Operators),
                5762.0,
            )
        },
        row(
            "Llama-3.1-8B, TP 8 x FSDP 8, compiled",
            llama_8b(),
            (8, 8),
            (8192, 12),
            (Light, Fused),
            4378.0,
        ),
        row(
            "Llama-3.1-70B, TP 8 x FSDP 32, compiled",
            llama_70b(),
            (8, 32),
            (8192, 16),
            (Full, Fused),
            597.3,
        ),
        Published {
            memory_gib: Some(81.85),
            ..row(
                "Qwen3-32B, FSDP 8, compiled",
                qwen3_32b(),
                (1, 8),
                (4096, 2),
                (Full, Fused),
                1874.0,
            )
        },
        Published {
            memory_gib: Some(43.45),
            tolerance: 0.4,
            ..row(
                "Qwen3-32B, TP 8 x FSDP 4, eager",
                qwen3_32b(),
                (8, 4),
                (4096, 16),
                (Full, Operators),
                876.0,
            )
        },
    ]
}

#[test]
fn published_numbers_are_near_and_the_docs_have_them() {
    let device = Device::named("h100-96-hbm2e").unwrap();
    let mut off = Vec::new();
    for row in published() {
        let config = ModelConfig::from_json(row.model.as_object().unwrap()).unwrap();
        let plan = Plan::declared(&ModuleTree::new(&config));
        let (tp, dp) = row.mesh;
        let sequence_parallel = tp > 1;
        let share = Share::new(&config, &plan, tp, sequence_parallel, None).unwrap();
        let settings = Settings {
            mesh: DeviceMesh::new(tp, dp).unwrap(),
            level: ShardingLevel::Parameters,
            precision: Precision::bf16(),
            reshard_after_forward: true,
            sequence_parallel,
            recompute: row.recompute,
            seq_length: row.seq_length,
            batch_size: row.batch_size,
            micro_batches: 1,
            head_chunk_rows: 512,
        };
        let took = |recompute| {
            let settings = Settings {
                recompute,
                ..settings
            };
            StepTime::of(&share, &settings, &device, row.kernels)
        };
        let mut time = took(row.recompute);
        if row.recompute == Recompute::Light {
            // Selective checkpointing of operations makes every second product once more, which no setting of ours does.
            time.products_s += 0.5 * (took(Recompute::Full).products_s - time.products_s);
        }
        let memory = Memory::of(&share, &settings, Place::Cuda);
        let gib = memory.total() as f64 / f64::from(1 << 30);
        let each = settings.tokens_per_step() / time.total_s() / (tp * dp) as f64;
        let ratio = each / row.tokens_per_s;
        let measured = row
            .memory_gib
            .map_or("-".to_owned(), |gib| format!("{gib:.0}"));
        let line = format!(
            "| {} | {:.0} | {:.0} | {:.2} | {measured} | {gib:.0} |",
            row.name, row.tokens_per_s, each, ratio
        );
        println!("{line}\n    {time:?}\n    {memory:?}");
        if (ratio - 1.0).abs() > row.tolerance {
            off.push(format!("{line}: off by more than {}", row.tolerance));
        }
        if !DOCS.contains(&line) {
            off.push(format!("docs/plan.md has not this row: {line}"));
        }
    }
    assert!(off.is_empty(), "{}", off.join("\n"));
}
