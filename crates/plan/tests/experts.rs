//! Experts that are spread over ranks: what is searched, what they hold, and what their conversations cost.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use std::collections::BTreeSet;

use serde_json::json;
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_parallel::{Plan, Precision, ShardingLevel};
use tandem_plan::{
    Candidate, CutChoice, Device, Group, Kernels, Memory, NoCandidate, Place, Question, Settings,
    Share, StepTime, Verb, of_step, reasons, search,
};
use tandem_tensor::Kind;

const EXPERTS: usize = 12;
const HIDDEN: usize = 64;
const VOCAB: usize = 400;
const LAYERS: usize = 2;

fn mixture() -> ModelConfig {
    let json = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 4,
        "head_dim": 16, "num_hidden_layers": LAYERS, "intermediate_size": 96, "moe_intermediate_size": 32,
        "num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "vocab_size": VOCAB, "max_position_embeddings": 512,
    });
    ModelConfig::from_json(json.as_object().unwrap()).unwrap()
}

fn dense() -> ModelConfig {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 4,
        "num_hidden_layers": LAYERS, "intermediate_size": 96, "vocab_size": VOCAB, "max_position_embeddings": 512,
    });
    ModelConfig::from_json(json.as_object().unwrap()).unwrap()
}

fn found(
    config: &ModelConfig,
    devices: usize,
    expert_parallel: Option<usize>,
) -> Result<Vec<Candidate>, NoCandidate> {
    search(&Question {
        config,
        plan: &Plan::declared(&ModuleTree::new(config)),
        adapters: None,
        devices,
        device: &Device::named("h100").unwrap(),
        kernels: Kernels::Fused,
        precision: Precision::bf16(),
        seq_length: 128,
        rows: 2 * devices,
        head_chunk_rows: 512,
        cuts: &CutChoice::ALL,
        tp_size: None,
        expert_parallel,
        sequence_parallel: None,
        recompute: None,
        batch_size: None,
    })
}

fn sizes(candidates: &[Candidate]) -> BTreeSet<usize> {
    candidates.iter().map(|it| it.expert_parallel).collect()
}

#[test]
fn experts_are_spread_over_what_divides_them_and_the_devices() {
    let config = mixture();
    let all = found(&config, 8, None).unwrap();
    assert_eq!(sizes(&all), [1, 2, 4].into());
    // On every mesh, and with every strategy.
    let of = |size: usize| {
        let candidates = all.iter().filter(move |it| it.expert_parallel == size);
        candidates.map(|it| (it.settings.mesh, it.cut.zero_stage()))
    };
    let kinds = |size| of(size).collect::<std::collections::HashSet<_>>();
    assert!(kinds(2).is_superset(&kinds(1)));
    // What is asked for is not searched, and the same as in the search.
    for size in [1, 4] {
        let asked = found(&config, 8, Some(size)).unwrap();
        let searched = all.iter().filter(|it| it.expert_parallel == size);
        assert!(asked.iter().eq(searched), "{size}");
    }
    // It need not divide the experts.
    let of_eight = found(&config, 8, Some(8)).unwrap();
    assert_eq!(sizes(&of_eight), [8].into());
    let why = reasons(&all, 80e9).join("\n");
    assert!(why.contains("experts "), "{why}");

    let of_dense = found(&dense(), 8, None).unwrap();
    assert_eq!(sizes(&of_dense), [1].into());
    let why = reasons(&of_dense, 80e9).join("\n");
    assert!(!why.contains("experts"), "{why}");

    for (config, asked, words) in [
        (&config, 3, "--expert_parallel_size 3 does not divide the 8"),
        (&config, 0, "expert_parallel_size is 0"),
        (&dense(), 2, "this model has none"),
    ] {
        let error = found(config, 8, Some(asked)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = found(&config, 16, Some(16)).unwrap_err().to_string();
    assert!(error.contains("more than the 12 experts"), "{error}");
}

struct Case {
    mesh: (usize, usize),
    ep: usize,
    reduce: Kind,
}

impl Case {
    fn new(mesh: (usize, usize), ep: usize) -> Self {
        Self {
            mesh,
            ep,
            reduce: Kind::BFloat16,
        }
    }

    fn cost(&self) -> (Share, Settings) {
        let config = mixture();
        let tree = ModuleTree::new(&config);
        let plan = Plan::declared(&tree).with_spread_experts(&config, &tree, self.ep);
        let (tp, dp) = self.mesh;
        let share = Share::new(&config, &plan.unwrap(), tp, false, None).unwrap();
        let settings = Settings {
            mesh: DeviceMesh::new(tp, dp).unwrap(),
            level: ShardingLevel::Replicated,
            precision: Precision {
                reduce: self.reduce,
                ..Precision::bf16()
            },
            reshard_after_forward: false,
            sequence_parallel: false,
            recompute: Recompute::Light,
            seq_length: 128,
            batch_size: 2,
            micro_batches: 1,
            head_chunk_rows: 512,
        };
        (share, settings)
    }

    /// Bytes of what carries gradients in bf16.
    fn wire(&self) -> u64 {
        let of = |reduce| {
            let (share, settings) = Self { reduce, ..*self }.cost();
            Memory::of(&share, &settings, Place::Cpu).collectives
        };
        of(Kind::BFloat16) - of(Kind::Float)
    }
}

#[test]
fn only_what_several_ranks_have_is_reduced_and_needs_a_wire() {
    const OF_EXPERT: usize = 3 * HIDDEN * 32;
    // Each expert once: the largest unit that is reduced is the head with its norm, of which both ranks have all.
    assert_eq!(
        Case::new((1, 2), 2).wire(),
        (2 * 2 * (VOCAB + 1) * HIDDEN) as u64
    );
    // Columns of one rank, but two ranks with the same six experts.
    assert_eq!(Case::new((4, 1), 4).wire(), 0);
    assert_eq!(
        Case::new((4, 1), 2).wire(),
        (2 * 2 * EXPERTS / 2 * OF_EXPERT) as u64
    );
    // And so with what is said.
    let said_to = |group: Group, case: &Case| -> u128 {
        let (share, settings) = case.cost();
        let all = of_step(&share, &settings).into_iter();
        let of_group = all.filter(|(it, _)| it.group == group);
        of_group.map(|(it, times)| it.bytes * times).sum()
    };
    for (mesh, ep, bytes) in [
        ((1, 2), 2, 0),
        ((4, 1), 4, 0),
        ((4, 1), 2, 2 * EXPERTS / 2 * OF_EXPERT * LAYERS),
        ((2, 2), 2, 2 * EXPERTS / 2 * OF_EXPERT * LAYERS),
    ] {
        let case = Case::new(mesh, ep);
        assert_eq!(said_to(Group::Edp, &case), bytes as u128, "{mesh:?}, {ep}");
    }
}

/// Rows of tokens go to experts and come back in forward, and in backward; there, gradients of weights are computed until they are back.
#[test]
fn the_way_to_experts_and_back_has_its_bytes_its_time_and_its_link() {
    let time = |per_node: usize| {
        let (share, settings) = Case::new((2, 4), 4).cost();
        let device = Device {
            devices_per_node: per_node,
            ..Device::named("h100").unwrap()
        };
        let all_to_all = of_step(&share, &settings)
            .into_iter()
            .filter(|(it, _)| it.verb == Verb::AllToAll);
        let bytes: u128 = all_to_all.map(|(it, times)| it.bytes * times).sum();
        let time = StepTime::of(&share, &settings, &device, Kernels::Fused);
        (bytes, time)
    };
    let (bytes, within) = time(8);
    // Each of four ranks has the rows of half of two rows of tokens, for two experts each.
    let rows = 4 * 128 * 2;
    let expected = LAYERS * rows * (4 * HIDDEN * 2 + 2 * 4);
    assert_eq!(bytes, expected as u128);
    // A rank's own, with the counts of rows for each expert.
    let counts = LAYERS * 8 * 4 * EXPERTS;
    assert_eq!(within.ep.bytes, (expected / 4 + counts) as f64);
    // Those that come back in backward are two of six conversations.
    let said = |it: &StepTime| it.ep.exposed_s + it.ep.hidden_s;
    assert!(within.ep.hidden_s > 0.0 && within.ep.exposed_s > within.ep.hidden_s);
    let (_, between) = time(2);
    assert!(said(&between) > 1.5 * said(&within));
    assert!(within.total_s() > within.ep.exposed_s + within.products_s);

    let (share, settings) = Case::new((2, 4), 1).cost();
    let device = Device::named("h100").unwrap();
    let cut = StepTime::of(&share, &settings, &device, Kernels::Fused);
    assert_eq!((cut.ep.bytes, cut.ep.exposed_s), (0.0, 0.0));
}
