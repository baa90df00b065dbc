//! Bad configs, for every family: a sentence that names the file and the key, whatever is wrong with it.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use std::path::Path;

use serde_json::{Map, Value, json};
use tandem_model::ModelConfig;
use tandem_model::config::RopeScaling;

/// What may stand under a key.
#[derive(Clone, Copy)]
enum Kind {
    /// A whole number of at least 1.
    Size,
    /// A whole number of at least 0.
    Count,
    /// A number above 0.
    Positive,
    /// A number of at least 0.
    NotNegative,
    /// 0, because nothing else is supported.
    Zero,
    Flag,
    Text,
    List,
    Object,
}

use Kind::{Count, Flag, List, NotNegative, Object, Positive, Size, Text, Zero};

impl Kind {
    /// Values that may not.
    fn wrong(self) -> Vec<Value> {
        let more = match self {
            Size => json!([true, "64", -1, 0, 1.5]),
            Count => json!([true, "64", -1, 1.5]),
            Positive => json!([true, "0.5", -0.5, 0, 1e300]),
            NotNegative => json!([true, "0.5", -0.5]),
            Zero => json!([true, "0.0", 0.1, -0.1]),
            Flag => json!(["true", 1, 0]),
            Text => json!([true, 1, "what nobody knows"]),
            List => json!([true, 1, "x", ["what nobody knows"]]),
            Object => json!([true, 1, "x", {"rope_type": "what nobody knows"}]),
        };
        let mut wrong = more.as_array().unwrap().clone();
        if !matches!(self, List) {
            wrong.push(json!([1]));
        }
        if !matches!(self, Object) {
            wrong.push(json!({"a": 1}));
        }
        wrong
    }
}

/// What every config has to say. Gemma 3's, as the text part of a larger one, may leave out the last two.
const REQUIRED: [&str; 5] = [
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
];

/// What all families read.
const COMMON: [(&str, Kind); 18] = [
    ("hidden_size", Size),
    ("num_hidden_layers", Size),
    ("intermediate_size", Size),
    ("num_attention_heads", Size),
    ("vocab_size", Size),
    ("num_key_value_heads", Size),
    ("head_dim", Size),
    ("max_position_embeddings", Size),
    ("sliding_window", Size),
    ("rms_norm_eps", Positive),
    ("rope_theta", Positive),
    ("initializer_range", NotNegative),
    ("attention_dropout", Zero),
    ("attention_bias", Flag),
    ("mlp_bias", Flag),
    ("tie_word_embeddings", Flag),
    ("use_sliding_window", Flag),
    ("rope_parameters", Object),
];

/// A family: its class, and the keys that it reads besides.
type Family = (&'static str, &'static [(&'static str, Kind)]);

const ACTIVATION: (&str, Kind) = ("hidden_act", Text);
const LAYERS: (&str, Kind) = ("layer_types", List);

const FAMILIES: [Family; 13] = [
    ("LlamaForCausalLM", &[ACTIVATION]),
    ("MistralForCausalLM", &[ACTIVATION, LAYERS]),
    (
        "Qwen2ForCausalLM",
        &[ACTIVATION, LAYERS, ("max_window_layers", Count)],
    ),
    (
        "Qwen3ForCausalLM",
        &[ACTIVATION, LAYERS, ("max_window_layers", Count)],
    ),
    (
        "Gemma2ForCausalLM",
        &[
            ("hidden_activation", Text),
            LAYERS,
            ("query_pre_attn_scalar", Positive),
            ("attn_logit_softcapping", Positive),
            ("final_logit_softcapping", Positive),
        ],
    ),
    (
        "Gemma3ForCausalLM",
        &[
            ("hidden_activation", Text),
            LAYERS,
            ("query_pre_attn_scalar", Positive),
            ("final_logit_softcapping", Positive),
            ("rope_local_base_freq", Positive),
            ("sliding_window_pattern", Size),
        ],
    ),
    (
        "Phi3ForCausalLM",
        &[
            ACTIVATION,
            ("partial_rotary_factor", Positive),
            ("original_max_position_embeddings", Positive),
        ],
    ),
    ("Olmo2ForCausalLM", &[ACTIVATION]),
    ("Olmo3ForCausalLM", &[ACTIVATION, LAYERS]),
    (
        "SmolLM3ForCausalLM",
        &[
            ACTIVATION,
            LAYERS,
            ("no_rope_layers", List),
            ("no_rope_layer_interval", Size),
        ],
    ),
    (
        "GraniteForCausalLM",
        &[
            ACTIVATION,
            ("embedding_multiplier", Positive),
            ("attention_multiplier", Positive),
            ("residual_multiplier", Positive),
            ("logits_scaling", Positive),
        ],
    ),
    (
        "MixtralForCausalLM",
        &[
            ACTIVATION,
            LAYERS,
            ("num_local_experts", Size),
            ("num_experts_per_tok", Size),
            ("router_jitter_noise", Zero),
            ("router_aux_loss_coef", NotNegative),
            ("output_router_logits", Flag),
        ],
    ),
    (
        "Qwen3MoeForCausalLM",
        &[
            ACTIVATION,
            ("num_experts", Size),
            ("num_experts_per_tok", Size),
            ("norm_topk_prob", Flag),
            ("moe_intermediate_size", Size),
            ("decoder_sparse_step", Size),
            ("mlp_only_layers", List),
            ("router_aux_loss_coef", NotNegative),
            ("output_router_logits", Flag),
        ],
    ),
];

/// Keys that change what some model computes, each with a value that does.
fn changes() -> Map<String, Value> {
    let changes = json!({
        "embd_pdrop": 0.1, "resid_pdrop": 0.1, "hidden_dropout": 0.1, "residual_dropout": 0.1, "attention_chunk_size": 8,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 64,
        "attention_multiplier": 0.5, "embedding_multiplier": 12.0, "residual_multiplier": 0.2, "logits_scaling": 8.0,
        "logit_scale": 0.5, "scale_emb": 12.0, "use_bidirectional_attention": true, "is_causal": false,
        "no_rope_layers": [1, 0, 1], "rope_local_base_freq": 1e4, "rope_interleaved": true, "use_mrope": true,
        "use_qk_norm": true, "qk_layernorm": true, "clip_qkv": 8.0, "qkv_clip": 8.0, "attn_output_gate": true,
        "lm_head_bias": true, "alibi": true, "use_parallel_residual": true, "num_experts": 4, "num_local_experts": 4,
        "n_routed_experts": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "partial_rotary_factor": 0.5,
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    });
    changes.as_object().unwrap().clone()
}

/// Of those, the ones that a family has: it reads them, or (Gemma 2 and 3) transformers reads them and does nothing.
fn has(class: &str, key: &str) -> bool {
    let (_, own) = FAMILIES.iter().find(|(name, _)| *name == class).unwrap();
    let gemma = ["attn_logit_softcapping", "rope_local_base_freq"];
    let experts = ["num_experts", "num_local_experts"];
    own.iter().any(|(name, _)| *name == key)
        || class.starts_with("Gemma") && gemma.contains(&key)
        || ["MixtralForCausalLM", "Qwen3MoeForCausalLM"].contains(&class) && experts.contains(&key)
}

/// A config that is as it should be.
fn good(class: &str) -> Map<String, Value> {
    let config = json!({
        "architectures": [class], "hidden_size": 64, "num_attention_heads": 32, "num_hidden_layers": 6,
        "intermediate_size": 128, "vocab_size": 100, "num_experts_per_tok": 2,
    });
    config.as_object().unwrap().clone()
}

/// What reading a folder with this config says.
fn said(folder: &Path, config: &Map<String, Value>) -> Result<ModelConfig, String> {
    let text = serde_json::to_vec(config).unwrap();
    std::fs::write(folder.join("config.json"), text).unwrap();
    ModelConfig::from_dir(folder).map_err(|error| error.to_string())
}

/// The config with `changes` must be refused with a sentence that names the file and one of the keys.
fn assert_named(folder: &Path, class: &str, changes: &[(&str, Value)], keys: &[&str]) {
    let mut config = good(class);
    for (key, value) in changes {
        config.insert((*key).to_owned(), value.clone());
    }
    let what = format!("{class} with {changes:?}");
    let said = said(folder, &config).expect_err(&what);
    let is_named = keys.iter().any(|key| said.contains(key));
    assert!(is_named && said.contains("config.json"), "{what}: {said}");
    assert!(!said.contains('\n') && said.len() < 600, "{what}: {said}");
}

#[test]
fn a_key_with_another_value_than_it_may_have_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut seen = 0;
    for (class, own) in FAMILIES {
        said(folder, &good(class)).unwrap();
        for (key, kind) in COMMON.iter().chain(own) {
            for value in kind.wrong() {
                // Of an object, what is wrong in it is as good.
                let names: &[&str] = match kind {
                    Object => &[key, "rope_type"],
                    _ => &[key],
                };
                assert_named(folder, class, &[(key, value)], names);
                seen += 1;
            }
        }
    }
    println!("{seen} wrong values, each refused by its key");
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (class, _) in FAMILIES {
        let required = match class {
            "Gemma3ForCausalLM" => &REQUIRED[..3],
            _ => &REQUIRED[..],
        };
        for key in required {
            assert_named(folder.path(), class, &[(key, Value::Null)], &[key]);
            let mut config = good(class);
            config.remove(*key).unwrap();
            let said = said(folder.path(), &config).unwrap_err();
            assert!(said.contains(key) && said.contains("config.json"), "{said}");
        }
    }
    // Without a class there is no family.
    let mut config = good("LlamaForCausalLM");
    for key in ["architectures", "model_type"] {
        config.remove(key);
    }
    let said = said(folder.path(), &config).unwrap_err();
    assert!(
        said.contains("architectures") && said.contains("config.json"),
        "{said}"
    );
}

/// Stretched embeddings need numbers of their own.
#[test]
fn what_a_stretched_embedding_lacks_or_has_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let longrope = json!({"rope_type": "longrope", "factor": 8.0, "short_factor": [1.0], "long_factor": [4.0]});
    for (class, _) in FAMILIES {
        let all = match class {
            "Phi3ForCausalLM" => vec![(&longrope, &["short_factor", "long_factor"][..])],
            _ => vec![
                (&linear, &["factor"][..]),
                (&llama3, &["factor", "low_freq_factor", "high_freq_factor"]),
            ],
        };
        // A head of two numbers has one frequency.
        let two = ("head_dim", json!(2));
        for (rope, needed) in all {
            for place in ["rope_scaling", "rope_parameters"] {
                let mut config = good(class);
                config.insert("head_dim".to_owned(), json!(2));
                config.insert(place.to_owned(), rope.clone());
                let config = said(folder.path(), &config).unwrap();
                let is_plain = |rope: &RopeScaling| *rope == RopeScaling::Default;
                let mut ropes = config.rope.iter().flatten();
                assert!(
                    ropes.any(|rope| !is_plain(&rope.scaling)),
                    "{class}, {place}"
                );
                for key in needed {
                    for value in [json!(null), json!("x"), json!(-1.0), json!(0), json!([])] {
                        let mut rope = rope.clone();
                        rope[key] = value;
                        let changes = [two.clone(), (place, rope)];
                        assert_named(folder.path(), class, &changes, &[key]);
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_family_does_not_compute_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (class, _) in FAMILIES {
        for (key, value) in changes() {
            if !has(class, &key) {
                assert_named(folder.path(), class, &[(&key, value)], &[&key]);
            }
        }
        // How it is quantised is said, also of the text part of a larger model.
        let of_gptq = json!({"quant_method": "gptq", "bits": 4, "a": "long".repeat(90)});
        let mut config = good(class);
        config.insert("quantization_config".to_owned(), of_gptq.clone());
        assert!(said(folder.path(), &config).unwrap_err().contains("gptq"));
        let whole = json!({"architectures": ["SomethingForConditionalGeneration"], "text_config": good(class),
            "quantization_config": of_gptq});
        let said = said(folder.path(), whole.as_object().unwrap()).unwrap_err();
        assert!(said.contains("quantization_config"), "{said}");
    }
}
