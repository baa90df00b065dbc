//! What configs mean: where they are silent, as transformers means it for that family; where they are wrong, nothing.
//!
//! Defaults and the meaning of `rope_scaling` are those of transformers 5.24 (`models/*/configuration_*.py`,
//! `modeling_rope_utils.py`).

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use serde_json::{Map, Value, json};
use tandem_model::config::{RopeConfig, RopeScaling};
use tandem_model::{ConfigError, ModelConfig};
use tandem_tensor::glu::Activation;

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

/// The embedding of the first layer.
fn rope_of(architecture: &str, changes: Value) -> RopeConfig {
    let config = config(architecture, changes).unwrap();
    config.rope[0].clone().unwrap()
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
        let plain = RopeConfig {
            theta: 10_000.0,
            scaling: RopeScaling::Default,
        };
        assert_eq!(silent.rope, vec![Some(plain); 3], "{name}");
        assert_eq!((silent.norm.eps, silent.initializer_range), (1e-6, 0.02));
        assert!(!silent.tie_word_embeddings, "{name}");
        assert_eq!(silent.qkv_bias, silent.family == "Qwen2");
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
    let rope = rope_of("Qwen2ForCausalLM", both(&older));
    let alone = json!({"max_position_embeddings": 512, "rope_parameters": older});
    assert_eq!(rope, rope_of("Qwen2ForCausalLM", alone));
    assert!(matches!(rope.scaling, RopeScaling::Yarn { factor, .. } if factor == 4.0));
    // Nothing is no scaling.
    for nothing in [json!({}), json!(null)] {
        let rope = rope_of("Qwen2ForCausalLM", both(&nothing));
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
    let rope = rope_of("Qwen2ForCausalLM", beside);
    assert_eq!(rope.theta, 5e5);
}

#[test]
fn dynamic_is_plain_up_to_the_trained_length() {
    for key in ["rope_scaling", "rope_parameters"] {
        let dynamic = json!({key: {"type": "dynamic", "factor": 2.0}, "rope_theta": 5e5});
        let rope = rope_of("LlamaForCausalLM", dynamic);
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
        rope_of("LlamaForCausalLM", more).scaling
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
    // What is written down one by one has a limit of its own.
    for (key, value) in [
        ("num_hidden_layers", 10_001),
        ("num_attention_heads", 1 << 30),
    ] {
        let many = json!({key: value, "num_key_value_heads": 1, "hidden_size": 4, "head_dim": 2});
        let error = config("LlamaForCausalLM", many).unwrap_err().to_string();
        assert!(
            error.contains(key) && error.contains("more than"),
            "{error}"
        );
    }
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

/// What transformers 5.24's class of each newer family takes where a config is silent.
#[test]
fn where_a_config_of_the_newer_families_is_silent_its_family_speaks() {
    let layers =
        |name: &str, layers: usize| config(name, json!({"num_hidden_layers": layers})).unwrap();
    let thetas = |config: &ModelConfig| -> Vec<Option<f64>> {
        let theta = |rope: &Option<RopeConfig>| rope.as_ref().map(|rope| rope.theta);
        config.rope.iter().map(theta).collect()
    };
    let gemma2 = layers("Gemma2ForCausalLM", 3);
    assert_eq!((gemma2.num_kv_heads, gemma2.head_dim), (4, 256));
    assert_eq!(gemma2.sliding_window, [Some(4096), None, Some(4096)]);
    assert_eq!(gemma2.attention_soft_cap, Some(50.0));
    assert_eq!(gemma2.logits_soft_cap, Some(30.0));
    assert_eq!(gemma2.attention_scale, 1.0 / 16.0);
    assert_eq!(gemma2.embedding_scale.factor, 8.0);
    assert_eq!(gemma2.activation, Activation::GeluTanh);
    assert!(gemma2.tie_word_embeddings && gemma2.norm.adds_one);

    let gemma3 = layers("Gemma3ForCausalLM", 7);
    let window = Some(4096);
    let expected = [window, window, window, window, window, None, window];
    assert_eq!(gemma3.sliding_window, expected);
    let (local, global) = (Some(1e4), Some(1e6));
    let expected = [local, local, local, local, local, global, local];
    assert_eq!(thetas(&gemma3), expected);
    assert_eq!(
        (gemma3.attention_soft_cap, gemma3.logits_soft_cap),
        (None, None)
    );
    assert_eq!(gemma3.max_position_embeddings, 131_072);
    // As in transformers, whose attention does not use it.
    let capped = json!({"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0});
    let capped = config("Gemma3ForCausalLM", capped).unwrap();
    assert_eq!(
        (capped.attention_soft_cap, capped.logits_soft_cap),
        (None, Some(30.0))
    );

    let phi3 = layers("Phi3ForCausalLM", 2);
    assert_eq!((phi3.num_kv_heads, phi3.norm.eps), (32, 1e-5));
    assert_eq!((phi3.sliding_window, phi3.rotary_dim), (vec![None; 2], 2));

    let olmo2 = layers("Olmo2ForCausalLM", 2);
    assert_eq!((olmo2.norm.eps, thetas(&olmo2)), (1e-5, vec![Some(1e4); 2]));
    let olmo3 = layers("Olmo3ForCausalLM", 4);
    assert_eq!(olmo3.sliding_window, [window, window, window, None]);
    assert_eq!(thetas(&olmo3), [Some(5e5); 4]);

    let smollm3 = layers("SmolLM3ForCausalLM", 4);
    assert_eq!(
        (smollm3.num_kv_heads, smollm3.tie_word_embeddings),
        (4, true)
    );
    assert_eq!(thetas(&smollm3), [Some(2e6), Some(2e6), Some(2e6), None]);
    assert_eq!(smollm3.sliding_window, [None; 4]);
    let windows = json!({"num_hidden_layers": 4, "use_sliding_window": true, "sliding_window": 9});
    let smollm3 = config("SmolLM3ForCausalLM", windows).unwrap();
    assert_eq!(smollm3.sliding_window, [None, None, None, Some(9)]);

    let granite = layers("GraniteForCausalLM", 1);
    let scales = (
        granite.attention_scale,
        granite.residual_scale,
        granite.logits_scale,
    );
    assert_eq!(scales, (1.0, 1.0, 1.0));
}

/// Older configs of families with two kinds of layers scale the embedding of one kind only.
#[test]
fn layers_that_slide_have_an_embedding_of_their_own() {
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let of = |name: &str, mut changes: Value| {
        changes["layer_types"] =
            json!(["sliding_attention", "full_attention", "sliding_attention"]);
        let config = config(name, changes).unwrap();
        let [local, full, again] = <[_; 3]>::try_from(config.rope).unwrap();
        assert_eq!(local, again);
        (local.unwrap(), full.unwrap())
    };
    let plain = |theta| RopeConfig {
        theta,
        scaling: RopeScaling::Default,
    };
    let scaled = |theta| RopeConfig {
        theta,
        scaling: RopeScaling::Linear { factor: 8.0 },
    };
    let older = json!({"rope_scaling": linear, "rope_theta": 3e6, "rope_local_base_freq": 2e4});
    let newer = json!({"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }});
    for changes in [older, newer] {
        assert_eq!(of("Gemma3ForCausalLM", changes), (plain(2e4), scaled(3e6)));
    }
    let older = json!({"rope_scaling": linear, "rope_theta": 3e4});
    assert_eq!(of("Olmo3ForCausalLM", older), (plain(3e4), scaled(3e4)));
    let silent = json!({"rope_parameters": {"full_attention": linear}});
    assert_eq!(of("Olmo3ForCausalLM", silent), (plain(5e5), scaled(5e5)));
}

/// Both spellings of Phi-3's scaling; the length of pre-training decides, and stands beside it.
#[test]
fn long_rope_is_read_under_all_of_its_names() {
    let phi = |changes: Value| {
        let mut all = json!({"num_attention_heads": 4, "max_position_embeddings": 131_072});
        let map = all.as_object_mut().unwrap();
        map.extend(changes.as_object().unwrap().clone());
        config("Phi3ForCausalLM", all)
    };
    let scaling = |kind: &str, key: &str, factors: usize| {
        json!({"original_max_position_embeddings": 4096,
            key: {"type": kind, "short_factor": vec![1.5; factors], "long_factor": vec![4.0; factors]}})
    };
    let named = phi(scaling("longrope", "rope_scaling", 8)).unwrap();
    for kind in ["su", "yarn"] {
        assert_eq!(phi(scaling(kind, "rope_scaling", 8)).unwrap(), named);
    }
    assert_eq!(
        phi(scaling("longrope", "rope_parameters", 8)).unwrap(),
        named
    );
    match &named.rope[0].as_ref().unwrap().scaling {
        RopeScaling::LongRope {
            attention_factor,
            original_max_position,
            ..
        } => {
            let expected = (1.0f64 + 32f64.ln() / 4096f64.ln()).sqrt();
            assert!((attention_factor - expected).abs() < 1e-12);
            assert_eq!(*original_max_position, 4096.0);
        }
        other => panic!("{other:?}"),
    }
    let mut partial = scaling("longrope", "rope_scaling", 6);
    partial["partial_rotary_factor"] = json!(0.75);
    assert_eq!(phi(partial.clone()).unwrap().rotary_dim, 12);
    for (changes, word) in [
        (scaling("longrope", "rope_scaling", 7), "short_factor"),
        (scaling("linear", "rope_scaling", 8), "factor"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            "rope_type",
        ),
        (
            json!({"partial_rotary_factor": 0.2}),
            "partial_rotary_factor",
        ),
        (
            json!({"partial_rotary_factor": 1.5}),
            "partial_rotary_factor",
        ),
    ] {
        let error = phi(changes.clone()).unwrap_err().to_string();
        assert!(error.contains(word), "{changes}: {error}");
    }
}

/// What would change the numbers, and is not computed, is refused by its name; what changes nothing is not.
#[test]
fn keys_that_change_the_computation_are_refused_by_name() {
    for (name, key, value) in [
        ("LlamaForCausalLM", "attn_logit_softcapping", json!(50.0)),
        ("LlamaForCausalLM", "residual_multiplier", json!(0.5)),
        ("LlamaForCausalLM", "num_local_experts", json!(8)),
        ("LlamaForCausalLM", "no_rope_layers", json!([1, 0, 1])),
        ("LlamaForCausalLM", "hidden_act", json!("relu")),
        (
            "Gemma2ForCausalLM",
            "use_bidirectional_attention",
            json!(true),
        ),
        ("Gemma2ForCausalLM", "hidden_activation", json!("relu")),
        ("Gemma2ForCausalLM", "query_pre_attn_scalar", json!(0)),
        ("Gemma3ForCausalLM", "final_logit_softcapping", json!(-30.0)),
        ("Gemma3ForCausalLM", "sliding_window_pattern", json!(0)),
        ("Gemma3ForCausalLM", "sliding_window", json!(null)),
        ("Phi3ForCausalLM", "resid_pdrop", json!(0.1)),
        ("Phi3ForCausalLM", "embd_pdrop", json!(0.1)),
        ("Phi3ForCausalLM", "lm_head_bias", json!(true)),
        ("Olmo2ForCausalLM", "clip_qkv", json!(8.0)),
        (
            "Olmo3ForCausalLM",
            "layer_types",
            json!(["chunked_attention", "full_attention", "full_attention"]),
        ),
        ("SmolLM3ForCausalLM", "no_rope_layers", json!([1, 2, 0])),
        ("SmolLM3ForCausalLM", "no_rope_layers", json!([1])),
        ("GraniteForCausalLM", "logits_scaling", json!(0.0)),
        ("GraniteForCausalLM", "attention_multiplier", json!("x")),
        ("GraniteForCausalLM", "attention_dropout", json!(0.1)),
    ] {
        let error = config(name, json!({ key: value })).unwrap_err().to_string();
        let named = error.contains(key) || error.contains("sliding_window");
        assert!(named, "{name}, {key}: {error}");
    }
    let harmless = json!({
        "embd_pdrop": 0.0, "lm_head_bias": false, "use_bidirectional_attention": null, "residual_multiplier": 1.0,
        "no_rope_layers": [1, 1, 1], "num_local_experts": 0, "pretraining_tp": 2, "use_cache": true, "anything": {"else": 1},
        "is_causal": true, "hidden_act": "gelu",
    });
    let llama = config("LlamaForCausalLM", harmless).unwrap();
    assert_eq!(llama.activation, Activation::Gelu);
}

/// The config of a model that also sees: its text part decides, and what that leaves out is as in its class.
#[test]
fn the_text_part_of_a_larger_model_is_read() {
    let text = json!({"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024});
    let whole = json!({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": text, "vision_config": {"hidden_size": 1152}, "initializer_range": 0.02});
    let config = ModelConfig::from_json(whole.as_object().unwrap()).unwrap();
    assert_eq!((config.family, config.hidden_size), ("Gemma3", 2560));
    assert_eq!(
        (config.vocab_size, config.num_heads, config.num_kv_heads),
        (262_208, 8, 4)
    );
    assert!(config.tie_word_embeddings);
    let alone = ModelConfig::text_part(whole.as_object().unwrap())
        .unwrap()
        .unwrap();
    assert_eq!(ModelConfig::from_json(&alone).unwrap(), config);

    let mut llava = whole;
    llava["architectures"] = json!(["LlavaForConditionalGeneration"]);
    llava["text_config"] = json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1,
        "intermediate_size": 8, "vocab_size": 9});
    let config = ModelConfig::from_json(llava.as_object().unwrap()).unwrap();
    assert_eq!(config.family, "Llama");
    llava["text_config"]["model_type"] = json!("gpt2");
    let error = ModelConfig::from_json(llava.as_object().unwrap()).unwrap_err();
    assert!(error.to_string().contains("gpt2"), "{error}");
}

/// The two files of every golden case are one model.
#[test]
fn both_key_styles_of_the_golden_cases_are_one_description() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/golden");
    let mut cases = 0;
    for folder in std::fs::read_dir(golden).unwrap() {
        let folder = folder.unwrap().path();
        let read = |name: &str| -> Option<ModelConfig> {
            let text = std::fs::read(folder.join(name)).ok()?;
            let json: Value = serde_json::from_slice(&text).unwrap();
            Some(ModelConfig::from_json(json.as_object().unwrap()).unwrap())
        };
        if let (Some(newer), Some(older)) = (read("config.json"), read("config_v4.json")) {
            assert_eq!(newer, older, "{}", folder.display());
            cases += 1;
        }
    }
    assert!(cases >= 14, "{cases} cases were found");
}

#[test]
fn mixtures_of_experts_mean_what_they_mean_to_transformers() {
    let experts = |name, changes| config(name, changes).unwrap().experts.unwrap();
    let mixtral = experts("MixtralForCausalLM", json!({}));
    let rule = mixtral.rule;
    assert_eq!((rule.experts, rule.top_k, rule.normalise), (8, 2, true));
    assert_eq!((mixtral.intermediate_size, mixtral.balance), (128, None));
    let qwen = json!({"num_attention_heads": 4});
    let rule = experts("Qwen3MoeForCausalLM", qwen).rule;
    assert_eq!((rule.experts, rule.top_k, rule.normalise), (128, 8, false));
    let layers =
        json!({"decoder_sparse_step": 2, "num_hidden_layers": 6, "mlp_only_layers": [3, 17]});
    let sparse = experts("Qwen3MoeForCausalLM", layers).sparse;
    assert_eq!(sparse, [false, true, false, false, false, true]);
    // The loss of balance is on where the router's logits are asked for.
    let asked = json!({"output_router_logits": true, "num_local_experts": 4});
    let asked = experts("MixtralForCausalLM", asked);
    assert_eq!((asked.balance, asked.rule.experts), (Some(0.001), 4));
    for (changes, word) in [
        (json!({"num_experts_per_tok": 9}), "num_experts_per_tok"),
        (json!({"num_local_experts": 0}), "num_local_experts"),
        (json!({"num_local_experts": 100_000}), "num_local_experts"),
        (json!({"router_jitter_noise": 0.1}), "router_jitter_noise"),
        (json!({"router_aux_loss_coef": -1}), "router_aux_loss_coef"),
    ] {
        let error = config("MixtralForCausalLM", changes)
            .unwrap_err()
            .to_string();
        assert!(error.contains(word), "{error}");
    }
    for (changes, word) in [
        (json!({"mlp_only_layers": ["x"]}), "mlp_only_layers"),
        (json!({"decoder_sparse_step": 0}), "decoder_sparse_step"),
        (json!({"moe_intermediate_size": 0}), "moe_intermediate_size"),
    ] {
        let error = config("Qwen3MoeForCausalLM", changes)
            .unwrap_err()
            .to_string();
        assert!(error.contains(word), "{error}");
    }
    // A family without experts does not overlook them.
    let error = config("LlamaForCausalLM", json!({"num_local_experts": 8})).unwrap_err();
    assert!(error.to_string().contains("num_local_experts"), "{error}");
}
