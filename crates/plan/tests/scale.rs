//! The tables of docs/plan.md about many ranks: what `tandem plan --scale=staged` prints of Qwen2-7B in rows of eight.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use serde_json::json;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{Plan, Precision};
use tandem_plan::scale::{Descriptors, Quantity, Scale, Subject, Then, Wire, figures};
use tandem_plan::{Candidate, CutChoice, Device, Kernels, Place, Question, search};

const DOCS: &str = include_str!("../../../docs/plan.md");

fn qwen2_7b() -> ModelConfig {
    let json = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
        "num_hidden_layers": 28, "intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": false,
    });
    ModelConfig::from_json(json.as_object().unwrap()).unwrap()
}

/// What the command finds for 64 devices, by its own defaults.
fn best(config: &ModelConfig, plan: &Plan) -> Candidate {
    let device = Device::named("h100").unwrap();
    let question = Question {
        config,
        plan,
        adapters: None,
        devices: 64,
        device: &device,
        kernels: Kernels::of(&device),
        precision: Precision::bf16(),
        seq_length: 4096,
        rows: 128,
        head_chunk_rows: 512,
        cuts: &CutChoice::ALL,
        tp_size: Some(8),
        expert_parallel: None,
        sequence_parallel: None,
        recompute: None,
        batch_size: None,
    };
    search(&question).unwrap()[0]
}

fn subject<'a>(config: &'a ModelConfig, plan: &'a Plan, wire: Wire) -> Subject<'a> {
    Subject {
        config,
        plan,
        adapters: None,
        settings: best(config, plan).settings,
        ranks_per_host: 8,
        wire,
        place: Place::Cuda,
    }
}

const UNKNOWN: Descriptors = Descriptors {
    soft: None,
    hard: None,
};

#[test]
fn the_tables_of_the_documentation_are_what_is_calculated() {
    let config = qwen2_7b();
    let plan = Plan::declared(&ModuleTree::new(&config));
    let scale = Scale::of(&subject(&config, &plan, Wire::Host), UNKNOWN).unwrap();
    assert_eq!(scale.columns, [64, 256, 1024]);
    let mut lines = Vec::new();
    for row in &scale.rows {
        let values: Vec<String> = row.values.iter().map(|it| row.quantity.show(*it)).collect();
        lines.push(format!(
            "| {} | {} | {} | {} |",
            row.phase,
            row.what,
            row.formula,
            values.join(" | ")
        ));
    }
    for limit in &scale.limits {
        let Some(met_at) = limit.met_at else { continue };
        let then = match limit.then {
            Then::Ends => "it ends",
            Then::Slows => "slower",
            Then::IsRaised => "is raised",
        };
        let count = |value: f64| Quantity::Count.show(value);
        lines.push(format!(
            "| {} | {} | {} | {then} |",
            limit.what,
            count(limit.has),
            count(met_at as f64),
        ));
    }
    println!("{}", lines.join("\n"));
    let missing: Vec<String> = lines.into_iter().filter(|it| !DOCS.contains(it)).collect();
    assert!(
        missing.is_empty(),
        "docs/plan.md has not these rows:\n{}",
        missing.join("\n")
    );
}

#[test]
fn the_first_limit_is_named_with_the_ranks_that_meet_it() {
    let config = qwen2_7b();
    let plan = Plan::declared(&ModuleTree::new(&config));
    let subject = subject(&config, &plan, Wire::Host);
    let here = Descriptors {
        soft: Some(1024),
        hard: Some(2000),
    };
    let scale = Scale::of(&subject, here).unwrap();
    let first = scale.first_end().unwrap();
    // 64 + 4 N is above 2000 from 485 on; rows are of eight.
    assert_eq!((first.has, first.met_at), (2000.0, Some(488)));
    assert_eq!(first.needs, 320.0);
    // An old default of other hosts, at 1016, is not this one's.
    let wide = Descriptors {
        soft: None,
        hard: Some(1 << 40),
    };
    let scale_of_wide = Scale::of(&subject, wide).unwrap();
    let first = scale_of_wide.first_end().unwrap();
    assert!(first.what.contains("the store's thread"), "{first:?}");
    let raised = scale.limits.iter().find(|it| it.then == Then::IsRaised);
    assert_eq!(raised.unwrap().met_at, Some(248));
    let places: Vec<usize> = scale.limits.iter().filter_map(|it| it.met_at).collect();
    assert!(places.is_sorted() && places.len() < scale.limits.len());
    // No host has more ranks to itself, however many there are.
    let ports = scale.limits.iter().find(|it| it.what.starts_with("ports"));
    assert_eq!((ports.unwrap().needs, ports.unwrap().met_at), (8.0, None));
}

#[test]
fn nccl_has_its_own_connections_which_nobody_counts() {
    let config = qwen2_7b();
    let plan = Plan::declared(&ModuleTree::new(&config));
    let of = |wire| figures(&subject(&config, &plan, wire), 256).unwrap();
    let (nccl, tcp) = (of(Wire::Nccl), of(Wire::Tcp));
    assert_eq!((nccl.connections, nccl.rings, nccl.watched), (0, 0, 0));
    assert_eq!(tcp.connections, 255 + 7 + 31);
    assert_eq!(nccl.list, tcp.list);
    assert_eq!(nccl.step, tcp.step);
    // All of the model's state, once, whatever the mesh.
    let elements = ModuleTree::new(&config).numel() as u64;
    assert_eq!(nccl.list.state_bytes, 12 * elements);
    assert!((nccl.written * 256).abs_diff(12 * elements) < 12 * elements / 20);
}
