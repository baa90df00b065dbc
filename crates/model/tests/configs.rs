//! What configs mean: where they are silent, as transformers means it for that family; where they are wrong, nothing.
//!
//! Defaults and the meaning of `rope_scaling` are those of transformers 5.24 (`models/*/configuration_*.py`,
//! `modeling_rope_utils.py`).

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use serde_json::{Map, Value, json};
use tandem_model::config::{Architecture, RopeScaling};
use tandem_model::{ConfigError, ModelConfig};

/// The least that a config must say, with `changes`; a change to null takes a key out.
fn config(architecture: &str, changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut config = json!({
        "architectures": [architecture], "hidden_size": 64, "num_attention_heads": 32, "num_hidden_layers": 3,
        "intermediate_size": 128, "vocab_size": 100,
    });
    let map = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        map.insert(key.clone(), value.clone());
    }
    ModelConfig::from_json(map)
}

fn refusal(changes: Value) -> String {
    let error = config("Qwen2ForCausalLM", changes.clone()).expect_err(&changes.to_string());
    error.to_string()
}

#[test]
fn where_a_config_is_silent_its_family_speaks() {
    for (name, kv_heads, max_position, window, head_dim) in [
        ("LlamaForCausalLM", 32, 2048, None, 2),
        ("MistralForCausalLM", 8, 131_072, Some(4096), 2),
        ("Qwen2ForCausalLM", 32, 32_768, None, 2),
        ("Qwen3ForCausalLM", 32, 32_768, None, 128),
    ] {
        let silent = config(name, json!({})).unwrap();
        assert_eq!(silent.num_kv_heads, kv_heads, "{name}");
        assert_eq!(silent.max_position_embeddings, max_position, "{name}");
        assert_eq!(silent.sliding_window, [window; 3], "{name}");
        assert_eq!(silent.head_dim, head_dim, "{name}");
        assert_eq!(silent.rope.theta, 10_000.0, "{name}");
        assert_eq!(silent.rope.scaling, RopeScaling::Default, "{name}");
        assert_eq!(
            (silent.rms_norm_eps, silent.initializer_range),
            (1e-6, 0.02)
        );
        assert!(!silent.tie_word_embeddings, "{name}");
        assert_eq!(silent.qkv_bias, silent.architecture == Architecture::Qwen2);
    }
    // Null is no default: no window, as many heads as there are queries.
    let null = json!({"sliding_window": null, "num_key_value_heads": null});
    let mistral = config("MistralForCausalLM", null).unwrap();
    assert_eq!(mistral.sliding_window, [None; 3]);
    assert_eq!(mistral.num_kv_heads, 32);
    // Qwen's default window, from the default layer on, once windows are used at all.
    let windows = json!({"use_sliding_window": true, "num_hidden_layers": 30});
    let qwen = config("Qwen2ForCausalLM", windows).unwrap();
    assert_eq!(qwen.sliding_window[27..], [None, Some(4096), Some(4096)]);
    let all = json!({"use_sliding_window": true, "max_window_layers": 0, "sliding_window": 7});
    let qwen = config("Qwen3ForCausalLM", all).unwrap();
    assert_eq!(qwen.sliding_window, [Some(7); 3]);
    // A default that does not fit is not bent.
    let error = config("MistralForCausalLM", json!({"num_attention_heads": 4})).unwrap_err();
    assert!(error.to_string().contains("num_key_value_heads"), "{error}");
}

#[test]
fn rope_scaling_wins_over_rope_parameters() {
    let newer = json!({"rope_type": "default", "rope_theta": 1e6});
    let older = json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128});
    let both = |older: &Value| json!({"max_position_embeddings": 512, "rope_parameters": newer, "rope_scaling": older});
    let rope = config("Qwen2ForCausalLM", both(&older)).unwrap().rope;
    let alone = json!({"max_position_embeddings": 512, "rope_parameters": older});
    assert_eq!(rope, config("Qwen2ForCausalLM", alone).unwrap().rope);
    assert!(matches!(rope.scaling, RopeScaling::Yarn { factor, .. } if factor == 4.0));
    // Nothing is no scaling.
    for nothing in [json!({}), json!(null)] {
        let rope = config("Qwen2ForCausalLM", both(&nothing)).unwrap().rope;
        assert_eq!((rope.theta, rope.scaling), (1e6, RopeScaling::Default));
    }
    // Its base would be lost without a word.
    let mut without = older.clone();
    without.as_object_mut().unwrap().remove("rope_theta");
    let said = refusal(both(&without));
    assert!(
        said.contains("rope_scaling") && said.contains("rope_parameters"),
        "{said}"
    );
    let mut beside = both(&without);
    beside["rope_theta"] = json!(5e5);
    let rope = config("Qwen2ForCausalLM", beside).unwrap().rope;
    assert_eq!(rope.theta, 5e5);
}

#[test]
fn dynamic_is_plain_up_to_the_trained_length() {
    for key in ["rope_scaling", "rope_parameters"] {
        let dynamic = json!({key: {"type": "dynamic", "factor": 2.0}, "rope_theta": 5e5});
        let rope = config("LlamaForCausalLM", dynamic).unwrap().rope;
        assert_eq!((rope.theta, rope.scaling), (5e5, RopeScaling::Default));
    }
    let said = refusal(json!({"rope_scaling": {"type": "dynamic"}}));
    assert!(said.contains("factor"), "{said}");
}

#[test]
fn the_length_of_pre_training_is_found_where_transformers_finds_it() {
    let llama3 = |mut more: Value| {
        more["rope_parameters"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        more["max_position_embeddings"] = json!(4096);
        config("LlamaForCausalLM", more).unwrap().rope.scaling
    };
    for (more, expected) in [
        (json!({}), 4096.0),
        (json!({"original_max_position_embeddings": 1024}), 1024.0),
    ] {
        match llama3(more) {
            RopeScaling::Llama3 {
                original_max_position,
                ..
            } => assert_eq!(original_max_position, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn wrong_types_are_refused() {
    for (key, value) in [
        ("rope_parameters", json!(3)),
        ("rope_parameters", json!([])),
        ("rope_scaling", json!("yarn")),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_theta": 1e6}}),
        ),
        ("rope_parameters", json!({"rope_type": 3})),
        ("rope_parameters", json!({"rope_theta": "1e6"})),
        ("rope_parameters", json!({"partial_rotary_factor": 0.5})),
        ("layer_types", json!("x")),
        ("layer_types", json!({"0": "full_attention"})),
        ("layer_types", json!([1, 2, 3])),
        ("architectures", json!({})),
        ("architectures", json!("Qwen2ForCausalLM")),
        ("architectures", json!([7])),
        ("model_type", json!(7)),
        ("hidden_act", json!(1)),
        ("hidden_act", json!(["silu"])),
        ("tie_word_embeddings", json!(1)),
        ("tie_word_embeddings", json!("true")),
        ("attention_bias", json!("no")),
        ("mlp_bias", json!(0)),
        ("use_sliding_window", json!("yes")),
        ("sliding_window", json!(true)),
        ("max_window_layers", json!(1.5)),
        ("rms_norm_eps", json!("1e-6")),
        ("num_key_value_heads", json!("2")),
        ("head_dim", json!(-2)),
        ("max_position_embeddings", json!("512")),
        ("attention_dropout", json!(false)),
    ] {
        let said = refusal(json!({ key: value }));
        let inner = value.as_object().and_then(|map| map.keys().next());
        let named = said.contains(key) || inner.is_some_and(|inner| said.contains(inner.as_str()));
        assert!(named, "{key}: {value}: {said}");
        assert!(!said.contains('\n'), "{said}");
    }
    // Also where the family has no use for them.
    for (key, value) in [("layer_types", json!("x")), ("sliding_window", json!("x"))] {
        config("LlamaForCausalLM", json!({ key: value })).unwrap_err();
    }
    // A window in the list, and none beside it: transformers cannot compute that either.
    let windows = json!({"layer_types": ["full_attention", "sliding_attention", "full_attention"]});
    assert!(refusal(windows).contains("sliding_window"));
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let yarn = |key: &str, value: f64| {
        let mut yarn =
            json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64});
        yarn[key] = json!(value);
        json!({"rope_parameters": yarn})
    };
    let llama3 = |key: &str, value: f64| {
        let mut llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        llama3[key] = json!(value);
        json!({"rope_parameters": llama3})
    };
    for (changes, key) in [
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps"),
        (json!({"rms_norm_eps": -1e-6}), "rms_norm_eps"),
        // No number in fp32.
        (json!({"rms_norm_eps": 1e300}), "rms_norm_eps"),
        (json!({"rms_norm_eps": 1e-300}), "rms_norm_eps"),
        (json!({"initializer_range": -1.0}), "initializer_range"),
        (json!({"rope_theta": 0}), "rope_theta"),
        (json!({"rope_theta": -1e4}), "rope_theta"),
        (yarn("factor", 0.0), "factor"),
        (yarn("factor", -4.0), "factor"),
        (yarn("attention_factor", 0.0), "attention_factor"),
        (yarn("beta_fast", -1.0), "beta_fast"),
        (yarn("mscale", -1.0), "mscale"),
        (
            yarn("original_max_position_embeddings", 0.0),
            "original_max_position",
        ),
        (yarn("rope_theta", 1.0), "rope_theta"),
        (llama3("low_freq_factor", 0.0), "low_freq_factor"),
        (llama3("low_freq_factor", 4.0), "high_freq_factor"),
        (llama3("factor", -8.0), "factor"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 0}}),
            "factor",
        ),
    ] {
        let said = refusal(changes.clone());
        assert!(said.contains(key), "{changes}: {said}");
    }
    // Python's `or` takes 0 for nothing.
    let usual = config("Qwen2ForCausalLM", yarn("beta_fast", 32.0)).unwrap();
    assert_eq!(
        config("Qwen2ForCausalLM", yarn("beta_fast", 0.0)).unwrap(),
        usual
    );
}

#[test]
fn no_size_overflows() {
    let sizes = [
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_hidden_layers",
        "intermediate_size",
        "vocab_size",
    ];
    for key in sizes {
        for power in [31, 32, 33, 48, 62, 63] {
            for size in [(1u64 << power) - 1, 1 << power, (1 << power) + 1] {
                // Which of two the message names is open; that there is one is not.
                if let Ok(config) = config("LlamaForCausalLM", json!({ key: size })) {
                    assert!(size < 1 << 31, "{key} {size}: {config:?}");
                }
            }
        }
        for value in [
            json!(u64::MAX),
            json!(i64::MIN),
            json!(0),
            json!(1.5),
            json!(1e30),
        ] {
            config("LlamaForCausalLM", json!({ key: value })).expect_err(key);
        }
    }
    // Each for itself is possible, all together are not.
    let most = i32::MAX;
    let together = json!({
        "hidden_size": most, "intermediate_size": most, "vocab_size": most, "num_hidden_layers": 10_000, "head_dim": 2
    });
    let error = config("LlamaForCausalLM", together).unwrap_err();
    assert!(matches!(error, ConfigError::TooLarge { .. }), "{error}");
    let thin = json!({"hidden_size": 4, "num_attention_heads": 8, "num_key_value_heads": 8});
    config("LlamaForCausalLM", thin).unwrap_err();
    // Nothing is multiplied with these.
    let far = json!({"max_position_embeddings": u64::MAX, "sliding_window": 1u64 << 63, "max_window_layers": u64::MAX});
    config("MistralForCausalLM", far).unwrap();
}

#[test]
fn a_config_that_is_no_small_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    let said = ModelConfig::from_dir(folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("config.json") && said.contains("too large"),
        "{said}"
    );
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let said = ModelConfig::from_dir(folder.path())
        .unwrap_err()
        .to_string();
    assert!(said.contains("not a regular file"), "{said}");
    let deep = "[".repeat(100_000);
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, deep).unwrap();
    ModelConfig::from_dir(folder.path()).unwrap_err();
    assert!(ModelConfig::from_json(&Map::new()).is_err());
}
