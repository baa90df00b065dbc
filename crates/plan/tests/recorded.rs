//! The model of cost against whole training steps of this project that were measured on two cores and recorded in `benches/runs`, each
//! with the rates of its products and of its memory right after it. `cargo xtask bench plan` measures more, and anew.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use std::path::Path;

use serde_json::{Value, json};
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_parallel::ShardingLevel::{self, Gradients, Optimizer, Parameters, Replicated};
use tandem_parallel::{Plan, Precision};
use tandem_plan::{Device, Kernels, Link, Memory, Place, Settings, Share, StepTime};

const DOCS: &str = include_str!("../../../docs/plan.md");

/// What `tandem bench step` measures unless it is told otherwise: Qwen2-0.5B, cut.
fn qwen2(layers: usize) -> ModelConfig {
    let json = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
        "num_hidden_layers": layers, "intermediate_size": 4864, "vocab_size": 151936, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true,
    });
    ModelConfig::from_json(json.as_object().unwrap()).unwrap()
}

/// One configuration of one strategy, and its turns.
struct Recorded {
    name: String,
    level: ShardingLevel,
    layers: usize,
    seq: usize,
    batch: usize,
    tp: usize,
    dp: usize,
    turns: Vec<Value>,
}

fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key}: {value}"))
}

/// All of ours in the folder of runs.
fn recorded() -> Vec<Recorded> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/runs/2026-11-25");
    let mut all: Vec<Recorded> = Vec::new();
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for result in file["results"].as_array().unwrap() {
            let configuration = &result["configuration"];
            let size = |key: &str| configuration[key].as_u64().unwrap() as usize;
            for contender in result["contenders"].as_array().unwrap() {
                let strategy = contender["contender"].as_str().unwrap();
                let level = match strategy {
                    "tandem fsdp" => Parameters,
                    "tandem zero0" => Replicated,
                    "tandem zero1" => Optimizer,
                    "tandem zero2" => Gradients,
                    _ => continue,
                };
                let name = format!(
                    "{}, {}",
                    configuration["name"].as_str().unwrap(),
                    &strategy[7..]
                );
                let turns = contender["turns"].as_array().unwrap().clone();
                match all.iter_mut().find(|it| it.name == name) {
                    Some(known) => known.turns.extend(turns),
                    None => all.push(Recorded {
                        name,
                        level,
                        layers: size("layers"),
                        seq: size("seq"),
                        batch: size("batch"),
                        tp: size("tp"),
                        dp: size("dp"),
                        turns,
                    }),
                }
            }
        }
    }
    all
}

impl Recorded {
    fn settings(&self) -> Settings {
        Settings {
            mesh: DeviceMesh::new(self.tp, self.dp).unwrap(),
            level: self.level,
            precision: Precision::bf16(),
            reshard_after_forward: self.level == Parameters,
            sequence_parallel: false,
            recompute: Recompute::Light,
            seq_length: self.seq,
            batch_size: self.batch,
            micro_batches: 1,
            head_chunk_rows: 512,
        }
    }

    /// The machine in one turn: what its floors say. A layer's and the head's products are 6 operations a weight and token.
    fn device(&self, turn: &Value) -> Device {
        let gemms = turn["gemms"].as_array().unwrap().iter();
        let flops: f64 = gemms
            .map(|gemm| {
                let of = |index: usize| gemm[index].as_f64().unwrap();
                6.0 * of(1) * of(2) * of(3) * of(4)
            })
            .sum();
        // The update's bytes, which the floor of memory is of.
        let owned = self.updated() as f64;
        let link = Link {
            bandwidth: 4e9,
            efficiency: 1.0,
            latency_s: 20e-6,
        };
        Device {
            name: "recorded".to_owned(),
            cpu: true,
            memory_bytes: 16e9,
            bf16_flops: flops / number(turn, "gemm_floor_s"),
            fp32_flops: 1e11,
            product_efficiency: 1.0,
            short_side: None,
            attention_efficiency: [0.55, 0.55],
            memory_bandwidth: owned / number(turn, "memory_floor_s"),
            memory_efficiency: 1.0,
            operation_s: 0.0,
            link,
            network: link,
            devices_per_node: self.tp * self.dp,
            overlap: 0.0,
        }
    }

    /// Bytes of the floor under an update: every gradient is written; of what is owned, 34 bytes are moved.
    fn updated(&self) -> u64 {
        let memory = Memory::of(&self.share(), &self.settings(), Place::Cpu);
        // Moments are 8 bytes of what is owned.
        let owned = memory.moments / 8;
        let tree = ModuleTree::new(&qwen2(self.layers));
        let whole = tree.numel() as u64 / self.tp as u64;
        4 * whole + 34 * owned
    }

    fn share(&self) -> Share {
        let config = qwen2(self.layers);
        let plan = Plan::declared(&ModuleTree::new(&config));
        Share::new(&config, &plan, self.tp, false, None).unwrap()
    }
}

#[test]
fn recorded_steps_and_peaks_are_predicted_and_the_docs_have_them() {
    let all = recorded();
    assert!(all.len() >= 20, "{} configurations", all.len());
    let mut off = Vec::new();
    for it in all {
        let (share, settings) = (it.share(), it.settings());
        let planned = Memory::of(&share, &settings, Place::Cpu).total() as f64 / 1e6;
        let median = |of: &dyn Fn(&Value) -> f64| {
            let mut all: Vec<f64> = it.turns.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let peak = median(&|turn| {
            let peaks = turn["peak_memory_mb"].as_array().unwrap().iter();
            peaks.map(|it| it.as_f64().unwrap()).fold(0.0, f64::max)
        });
        let took = median(&|turn| number(turn, "step_time_s"));
        let time = median(&|turn| {
            StepTime::of(&share, &settings, &it.device(turn), Kernels::Fused).total_s()
        });
        let line = format!(
            "| {} | {planned:.0} | {peak:.0} | {:.2} | {time:.2} | {took:.2} | {:.2} |",
            it.name,
            planned / peak,
            time / took
        );
        println!("{line}");
        if (planned / peak - 1.0).abs() > 0.1 {
            off.push(format!("{line}: memory is off by more than a tenth"));
        }
        // Two turns of which one met another program say nothing of time.
        let times = || it.turns.iter().map(|turn| number(turn, "step_time_s"));
        let fastest = times().fold(f64::INFINITY, f64::min);
        let is_disturbed = it.turns.len() == 2 && times().any(|other| other > 1.5 * fastest);
        if (time / took - 1.0).abs() > 0.2 && !is_disturbed {
            off.push(format!("{line}: time is off by more than a fifth"));
        }
        if !DOCS.contains(&line) {
            off.push(format!("docs/plan.md has not this row: {line}"));
        }
    }
    assert!(off.is_empty(), "{}", off.join("\n"));
}
