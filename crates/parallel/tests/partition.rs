//! Every element of every parameter is answered for by exactly one rank of a row, for any sizes and any tp_size.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use std::ops::Range;

use proptest::prelude::*;
use serde_json::json;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{AutoTp, Plan, ShardingLevel, Style, TpSlices, UnitLayout, layouts};

fn config(
    architecture: &str,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    tied: bool,
) -> ModelConfig {
    let mut json = json!({
        "architectures": [architecture], "hidden_size": 8, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": 4, "num_hidden_layers": 2, "intermediate_size": 13,
        "vocab_size": vocab, "max_position_embeddings": 64, "tie_word_embeddings": tied,
        "attention_bias": true, "mlp_bias": true, "moe_intermediate_size": 11,
    });
    if architecture.contains("Moe") || architecture.contains("Mixtral") {
        json["num_experts"] = 3.into();
        json["num_experts_per_tok"] = 2.into();
    }
    ModelConfig::from_json(json.as_object().unwrap()).unwrap()
}

fn all_layouts(
    config: &ModelConfig,
    tp_size: usize,
    sequence_parallel: bool,
) -> Vec<Vec<UnitLayout>> {
    let tree = ModuleTree::new(config);
    let plan = Plan::declared(&tree);
    let slices = TpSlices::new(config, tp_size).unwrap();
    (0..tp_size)
        .map(|rank| layouts(config, &tree, &plan, &slices, (rank, 0), sequence_parallel))
        .collect()
}

/// (heads, kv_heads, tp_size): any grouping, also more ranks than key/value heads.
fn head_counts() -> impl Strategy<Value = (usize, usize, usize)> {
    (1usize..5, 1usize..5).prop_flat_map(|(kv, group)| {
        let heads = kv * group;
        (Just(heads), Just(kv), 1..=heads.min(9))
    })
}

use proptest::strategy::Strategy;

proptest! {
    #[test]
    fn every_element_is_counted_exactly_once(
        (heads, kv_heads, tp_size) in head_counts(), vocab in 9usize..40, tied: bool, sequence_parallel: bool,
    ) {
        for architecture in ["LlamaForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM", "Olmo2ForCausalLM", "Qwen3MoeForCausalLM"] {
            let config = config(architecture, heads, kv_heads, vocab, tied);
            let ranks = all_layouts(&config, tp_size, sequence_parallel);
            for spec in ModuleTree::new(&config).parameters() {
                let mut owners = vec![0; spec.numel()];
                let params = ranks.iter().flatten().flat_map(|unit| &unit.params);
                for param in params.filter(|param| param.spec.name == spec.name) {
                    let counted = param.slice.clone().with_flat(param.counted.clone());
                    for run in counted.runs() {
                        owners[run.source..run.source + run.len].iter_mut().for_each(|n| *n += 1);
                    }
                }
                prop_assert!(owners.iter().all(|&n| n == 1), "{}: {:?}", spec.name, owners);
            }
        }
    }

    #[test]
    fn replicas_are_listed_alike_on_all_ranks_and_hold_the_same_elements(
        (heads, kv_heads, tp_size) in head_counts(), sequence_parallel: bool,
    ) {
        for architecture in ["Qwen3ForCausalLM", "Phi3ForCausalLM", "Olmo2ForCausalLM"] {
        let config = config(architecture, heads, kv_heads, 20, true);
        let ranks = all_layouts(&config, tp_size, sequence_parallel);
        for unit in 0..ranks[0].len() {
            for position in 0..ranks[0][unit].replicas.len() {
                let first = &ranks[0][unit].replicas[position];
                let mut holders = 0;
                let mut elements: Option<Vec<usize>> = None;
                for rank in &ranks {
                    let replica = &rank[unit].replicas[position];
                    prop_assert_eq!((&replica.name, replica.len), (&first.name, first.len));
                    let Some(flat) = &replica.flat else { continue };
                    holders += 1;
                    let held = global_elements(&rank[unit], flat);
                    prop_assert_eq!(elements.get_or_insert_with(|| held.clone()), &held);
                }
                prop_assert!(holders > 1, "{} is held by {} rank(s)", first.name, holders);
            }
        }
        }
    }
}

/// The global elements behind a range of a unit's flat buffer.
fn global_elements(unit: &UnitLayout, flat: &Range<usize>) -> Vec<usize> {
    let param = unit
        .params
        .iter()
        .find(|p| p.span().contains(&flat.start))
        .unwrap();
    let local = flat.start - param.offset..flat.end - param.offset;
    let slice = param.slice.clone().with_flat(local);
    slice
        .runs()
        .iter()
        .flat_map(|run| run.source..run.source + run.len)
        .collect()
}

#[test]
fn the_inferred_plan_is_the_declared_one() {
    for architecture in [
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Phi3ForCausalLM",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "SmolLM3ForCausalLM",
        "GraniteForCausalLM",
        "MixtralForCausalLM",
        "Qwen3MoeForCausalLM",
    ] {
        // One key/value head is as wide as all of them together.
        for (tied, kv_heads) in [(false, 2), (true, 2), (true, 1)] {
            let tree = ModuleTree::new(&config(architecture, 4, kv_heads, 20, tied));
            let inferred = AutoTp::default().infer(&tree).unwrap();
            assert_eq!(
                inferred,
                Plan::declared(&tree),
                "{architecture}, tied {tied}"
            );
            inferred.check(&tree).unwrap();
        }
    }
}

/// A tensor of q, k and v: its rows on a rank are its heads' of each, so that they are one matrix in the rank's buffer.
#[test]
fn a_fused_tensor_is_cut_along_each_of_its_parts() {
    // 4 query heads and 2 key/value heads of 4 numbers, 13 columns.
    let config = config("Phi3ForCausalLM", 4, 2, 20, true);
    let ranks = all_layouts(&config, 2, false);
    let rows = |rank: usize, name: &str| -> Vec<Range<usize>> {
        let params = ranks[rank][1].params.iter();
        params
            .filter(|param| param.spec.name.ends_with(name))
            .map(|param| param.slice.offsets[0]..param.slice.offsets[0] + param.slice.shape[0])
            .collect()
    };
    assert_eq!(rows(0, "qkv_proj.weight"), [0..8, 16..20, 24..28]);
    assert_eq!(rows(1, "qkv_proj.weight"), [8..16, 20..24, 28..32]);
    let [columns, others] = [0, 1].map(|rank| rows(rank, "gate_up_proj.weight"));
    assert_eq!(columns[0].end, others[0].start);
    assert_eq!(columns[1].start - columns[0].start, 13);
    // One rank holds it as it is.
    let whole = &all_layouts(&config, 1, false)[0][1];
    let parts = whole.params.iter();
    assert_eq!(
        parts
            .filter(|param| param.spec.name.ends_with("qkv_proj.weight"))
            .count(),
        1
    );
}

#[test]
fn overrides_are_honoured_or_refused() {
    let tree = ModuleTree::new(&config("LlamaForCausalLM", 4, 2, 20, true));
    let plan = |text: &str| AutoTp::with_overrides(&[text.to_owned()])?.infer(&tree);
    let skipped = plan(r"mlp\.down_proj$=replicate").unwrap();
    assert_eq!(
        skipped.styles["model.layers.1.mlp.down_proj"],
        Style::Replicate
    );
    let refusal = skipped.check(&tree).unwrap_err().to_string();
    assert!(
        refusal.contains("layers.0.mlp") && refusal.contains("replicate all"),
        "{refusal}"
    );
    let whole = plan(r"mlp\.=replicate").unwrap();
    whole.check(&tree).unwrap();
    assert!(whole.is_whole("model.layers.1.mlp") && !whole.is_whole("model.layers.1.self_attn"));
    assert!(plan("q_proj=replicate").unwrap().check(&tree).is_err());
    assert!(
        plan("lm_head|embed_tokens=replicate")
            .unwrap()
            .check(&tree)
            .is_err()
    );
    // As DeepSpeed's files have them: about parameters, and the outputs of the embedding are the vocabulary.
    for same in [
        r"^(?:.*\.(up|gate)_proj\.weight$)=colwise",
        r"^(?:.*\.embed_tokens$)=colwise",
    ] {
        assert_eq!(plan(same).unwrap(), Plan::declared(&tree), "{same}");
    }
    assert!(
        plan("no_such_module=rowwise")
            .unwrap_err()
            .to_string()
            .contains("no_such_module")
    );
    assert!(plan("q_proj=diagonal").is_err());
    assert!(plan("q_proj(=colwise").is_err());
}

#[test]
fn too_large_a_row_is_refused_with_the_number_that_fits() {
    let error = TpSlices::new(&config("LlamaForCausalLM", 4, 2, 20, true), 5).unwrap_err();
    assert!(error.to_string().contains("--tp_size 4 or less"), "{error}");
}

/// Ranks that disagreed would wait for each other in different collectives.
#[test]
fn only_a_unit_like_no_other_keeps_its_buffers_on_all_ranks_alike() {
    use ShardingLevel::{Gradients, Optimizer, Parameters, Replicated};
    for (tied, vocab, tp_size) in [(true, 400, 3), (true, 401, 2), (false, 400, 3)] {
        let config = config("Qwen3ForCausalLM", 4, 2, vocab, tied);
        for layouts in all_layouts(&config, tp_size, true) {
            let rest = layouts.len() - 1;
            for level in [Replicated, Optimizer] {
                assert_eq!(level.of_units(&layouts), vec![level; rest + 1]);
            }
            for level in [Gradients, Parameters] {
                let first = if tied { Optimizer } else { level };
                let expected = [vec![first], vec![level; rest]].concat();
                assert_eq!(level.of_units(&layouts), expected);
            }
        }
    }
}

/// What every rank computes whole, it holds whole; the first answers for it; and each has its whole gradient, because it has seen
/// all tokens, even where the residual stream is cut by token.
#[test]
fn a_block_that_is_replicated_is_whole_on_every_rank() {
    let config = config("LlamaForCausalLM", 4, 2, 20, true);
    let tree = ModuleTree::new(&config);
    let overrides = [r"layers\.0\.self_attn\.|layers\.1\.mlp\.=replicate".to_owned()];
    let plan = AutoTp::with_overrides(&overrides)
        .unwrap()
        .infer(&tree)
        .unwrap();
    plan.check(&tree).unwrap();
    let slices = TpSlices::new(&config, 2).unwrap();
    for rank in 0..2 {
        for unit in layouts(&config, &tree, &plan, &slices, (rank, 0), true) {
            for param in &unit.params {
                let is_whole = param.spec.name.contains("layers.0.self_attn")
                    || param.spec.name.contains("layers.1.mlp");
                let is_matrix = param.spec.shape.len() == 2;
                if is_matrix {
                    let held = param.slice.numel() == param.spec.numel();
                    assert_eq!(held, is_whole, "{}", param.spec.name);
                }
                if is_whole {
                    let counted = if rank == 0 { param.spec.numel() } else { 0 };
                    assert_eq!(param.counted.len(), counted, "{}", param.spec.name);
                    let mut replicas = unit.replicas.iter();
                    let replica = replicas.find(|it| it.name == param.spec.name).unwrap();
                    // These are added behind the block, by each rank to its own tokens.
                    let is_behind = ["o_proj.bias", "down_proj.bias"]
                        .iter()
                        .any(|end| param.spec.name.ends_with(end));
                    assert_eq!(replica.partial_gradient, is_behind, "{}", param.spec.name);
                }
            }
        }
    }
}

/// What a person is shown of a mixture: all kinds of layers, and one expert for all.
#[test]
fn a_table_of_the_plan_has_every_kind_of_layer_once() {
    let json = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 4, "num_hidden_layers": 4, "intermediate_size": 16, "moe_intermediate_size": 8, "num_experts": 3,
        "num_experts_per_tok": 2, "decoder_sparse_step": 2, "vocab_size": 20,
    });
    let config = ModelConfig::from_json(json.as_object().unwrap()).unwrap();
    let tree = ModuleTree::new(&config);
    let rows = Plan::declared(&tree).rows(&tree);
    let style_of = |path: &str| {
        let named = rows.iter().filter(|(its, ..)| its == path);
        named.map(|(_, _, style)| *style).collect::<Vec<_>>()
    };
    for (path, style) in [
        ("model.layers.*.mlp.down_proj", Style::Rowwise),
        ("model.layers.*.mlp.gate", Style::Replicate),
        ("model.layers.*.mlp.experts.*.up_proj", Style::Colwise),
        ("model.layers.*.mlp.experts.*.down_proj", Style::Rowwise),
    ] {
        assert_eq!(style_of(path), [style], "{path}: {rows:?}");
    }
    assert_eq!(
        Plan::declared(&tree),
        AutoTp::default().infer(&tree).unwrap()
    );
}

/// Spread over ranks, every expert is whole on one rank of each group, all that is not an expert lies as before, and all ranks
/// agree on how large a unit is.
#[test]
fn experts_that_are_spread_are_each_on_one_rank() {
    let config = config("MixtralForCausalLM", 4, 2, 20, false);
    let tree = ModuleTree::new(&config);
    let cut = Plan::declared(&tree);
    assert_eq!(cut.expert_ranks(), 1);
    let slices = TpSlices::new(&config, 2).unwrap();
    for ranks in [2, 3] {
        let plan = cut.clone().with_spread_experts(&config, &tree, ranks);
        let plan = plan.unwrap();
        plan.check(&tree).unwrap();
        assert_eq!(plan.expert_ranks(), ranks);
        let mut held: Vec<String> = Vec::new();
        let mut levels = Vec::new();
        for rank in 0..ranks {
            let units = layouts(&config, &tree, &plan, &slices, (0, rank), false);
            let (spread, others): (Vec<_>, Vec<_>) =
                units.iter().partition(|unit| unit.experts_of.is_some());
            assert_eq!(spread.len(), config.num_layers);
            assert_eq!(others.len(), tree.units.len());
            for param in spread.iter().flat_map(|unit| &unit.params) {
                assert_eq!(param.counted, 0..param.spec.numel());
                assert_eq!(param.slice.numel(), param.spec.numel());
                held.push(param.spec.name.clone());
            }
            assert!(spread.iter().all(|unit| unit.replicas.is_empty()));
            let names = others.iter().flat_map(|unit| &unit.params);
            assert!(
                names
                    .into_iter()
                    .all(|it| !it.spec.name.contains(".experts."))
            );
            levels.push(ShardingLevel::Parameters.of_units(&units));
        }
        assert!(levels.windows(2).all(|pair| pair[0] == pair[1]));
        held.sort();
        let specs = tree.parameters().map(|spec| spec.name.clone());
        let mut all: Vec<String> = specs.filter(|name| name.contains(".experts.")).collect();
        all.sort();
        assert_eq!(held, all);
    }
    let refused = |size| {
        let plan = cut.clone().with_spread_experts(&config, &tree, size);
        plan.unwrap_err().to_string()
    };
    assert!(refused(4).contains("--expert_parallel_size 4 is more than the 3 experts"));
    let dense = self::config("LlamaForCausalLM", 4, 2, 20, true);
    let tree = ModuleTree::new(&dense);
    let plan = Plan::declared(&tree).with_spread_experts(&dense, &tree, 2);
    assert!(
        plan.unwrap_err()
            .to_string()
            .contains("this model has none")
    );
}
