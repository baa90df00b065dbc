//! The explicit backward of every module against finite differences of its own forward.
//!
//! fp32 differences are coarse, so each check moves along one random direction, with a step at which rounding and
//! curvature both stay below the tolerance of 1 %.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};
use tandem_model::lora::{LoraConfig, LoraTargets};
use tandem_model::{
    AdapterDims, AdapterTensors, DecoderLayer, DropoutRows, Embedding, Gradients, Head,
    HeadTensors, LayerDims, LayerTensors, MlpTensors, ModelConfig, ModuleTree, Recompute,
    RopeTable, SingleRank, TokenFacts, UnitTree, WholeBlocks,
};
use tandem_tensor::Accumulate;
use tandem_tensor::attention::{AttentionSpec, Documents};
use tandem_tensor::cross_entropy::Bend;
use tandem_tensor::rms_norm::NormSpec;
use tandem_tensor::scratch::Scratch;
use tandem_tensor::{Device, Kind, Tensor, random};

const SEQ: usize = 12;
const ROWS: usize = 2;

fn config(change: Value) -> ModelConfig {
    let mut json = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 1, "intermediate_size": 24,
        "vocab_size": 20, "max_position_embeddings": 64,
    });
    let map = json.as_object_mut().unwrap();
    map.extend(change.as_object().unwrap().clone());
    ModelConfig::from_json(map).unwrap()
}

fn randn(shape: &[i64], seed: u64, std: f32) -> Tensor {
    let numel: i64 = shape.iter().product();
    let mut values = vec![0f32; numel as usize];
    random::fill_normal(&mut values, seed, "backward", 0, std);
    Tensor::from_slice(&values).view(shape)
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) * b.to_kind(Kind::Double))
        .sum(Kind::Double)
        .double_value()
}

/// `f` along `direction` from `x`, by central differences.
fn slope(x: &Tensor, direction: &Tensor, f: &dyn Fn(&Tensor) -> f64) -> f64 {
    let step = 1e-2;
    (f(&(x + direction * step)) - f(&(x - direction * step))) / (2.0 * step)
}

fn assert_slope(label: &str, analytic: f64, numeric: f64, scale: f64) {
    let error = (analytic - numeric).abs() / scale.max(numeric.abs());
    println!("{label}: analytic {analytic:.5}, numeric {numeric:.5}");
    assert!(
        error < 1e-2,
        "{label}: analytic {analytic}, numeric {numeric}"
    );
}

fn layer(config: &ModelConfig) -> DecoderLayer {
    DecoderLayer {
        dims: LayerDims::whole(config, 0),
        whole: WholeBlocks::default(),
        rope: config.rope[0]
            .as_ref()
            .map(|rope| Rc::new(RopeTable::new(rope, config.rotary_dim, SEQ, Device::Cpu))),
        attention: AttentionSpec {
            scale: config.attention_scale,
            sliding_window: config.sliding_window[0].map(|window| window as i64),
            soft_cap: config.attention_soft_cap,
        },
        norm: config.norm,
        activation: config.activation,
        residual_scale: config.residual_scale,
        matmul: Kind::Float,
        seq: SEQ,
    }
}

#[test]
fn a_layers_backward_is_the_derivative_of_its_forward() {
    let variants = [
        ("llama", json!({})),
        (
            "biases everywhere",
            json!({"attention_bias": true, "mlp_bias": true}),
        ),
        ("qwen2", json!({"architectures": ["Qwen2ForCausalLM"]})),
        (
            "qwen3 q/k norms",
            json!({"architectures": ["Qwen3ForCausalLM"]}),
        ),
        (
            "mistral sliding window",
            json!({"architectures": ["MistralForCausalLM"], "sliding_window": 3}),
        ),
        (
            "gemma2 norms on both sides, caps",
            json!({"architectures": ["Gemma2ForCausalLM"], "sliding_window": 3, "attn_logit_softcapping": 3.0,
                "query_pre_attn_scalar": 10, "attention_bias": true}),
        ),
        (
            "gemma3",
            json!({"architectures": ["Gemma3ForCausalLM"], "sliding_window": 3, "hidden_activation": "gelu"}),
        ),
        (
            "phi3, rotated in part",
            json!({"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.5}),
        ),
        (
            "olmo2 norms after the blocks and across heads",
            json!({"architectures": ["Olmo2ForCausalLM"], "attention_bias": true}),
        ),
        (
            "smollm3 without positions",
            json!({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [0]}),
        ),
        (
            "granite multipliers",
            json!({"architectures": ["GraniteForCausalLM"], "attention_bias": true, "mlp_bias": true,
                "attention_multiplier": 0.3, "residual_multiplier": 0.4}),
        ),
        (
            "granite multipliers without biases",
            json!({"architectures": ["GraniteForCausalLM"], "residual_multiplier": 0.4}),
        ),
        // All are chosen: between two choices there is no derivative.
        (
            "experts",
            json!({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 3, "num_experts_per_tok": 3,
                "moe_intermediate_size": 10}),
        ),
    ];
    for (name, change) in variants {
        let config = config(change);
        let mut layer = layer(&config);
        // Query heads that the kernels cannot group by themselves take the path with an explicit map.
        for map in [None, Some(vec![0, 1, 1, 1])] {
            layer.dims.kv_of_q = map.clone();
            let label = format!("{name}, map {map:?}");
            check_layer(&label, &config, &layer, None);
            // The first row is two documents, the second three.
            let starts = vec![vec![0, 2], vec![0, 1, SEQ as u32 - 1]];
            let documents = Documents::new(starts, SEQ, Device::Cpu).map(Arc::new);
            let label = format!("{label}, with documents");
            check_layer(&label, &config, &layer, documents.as_ref());
        }
    }
}

/// Separate and fused matrices, without and with dropout: the gradient of every adapter, and that of the input.
#[test]
fn the_adapters_backward_is_the_derivative_of_their_forward() {
    let some = ["q_proj", "v_proj", "down_proj"]
        .map(str::to_owned)
        .to_vec();
    for (name, change, targets) in [
        ("llama", json!({}), LoraTargets::AllLinear),
        (
            "some, with biases",
            json!({"attention_bias": true, "mlp_bias": true}),
            LoraTargets::Named(some),
        ),
        (
            "phi3",
            json!({"architectures": ["Phi3ForCausalLM"]}),
            LoraTargets::AllLinear,
        ),
        (
            "gemma2",
            json!({"architectures": ["Gemma2ForCausalLM"], "sliding_window": 3, "query_pre_attn_scalar": 10}),
            LoraTargets::AllLinear,
        ),
    ] {
        let config = config(change);
        for dropout in [0.0, 0.4] {
            let lora = LoraConfig {
                r: 3,
                alpha: 4.0,
                dropout,
                use_rslora: true,
                targets: targets.clone(),
            };
            check_adapters(&format!("{name}, dropout {dropout}"), &config, &lora);
        }
    }
}

fn check_adapters(label: &str, config: &ModelConfig, lora: &LoraConfig) {
    let layer = layer(config);
    let frozen = &ModuleTree::new(config).units[1];
    let trained = &ModuleTree::adapters(config, lora).unwrap().units[0];
    let width = |axis| layer.dims.width(axis);
    let dims = AdapterDims::new(lora, frozen, layer.dims.hidden, &width, (0, 0));
    let numel = |unit: &UnitTree| unit.parameters.iter().map(|p| p.numel()).sum::<usize>() as i64;
    let tokens = (ROWS * SEQ) as i64;
    let weights = randn(&[numel(frozen)], 1, 0.3);
    let flat = randn(&[numel(trained)], 6, 0.3);
    let x = randn(&[tokens, 16], 2, 1.0);
    let d_out = randn(&[tokens, 16], 3, 1.0);
    let facts = TokenFacts::default();
    let rows = DropoutRows {
        seed: 5,
        epoch: 1,
        first_row: 7,
        seq: SEQ,
    };
    let view = |flat: &Tensor| LayerTensors {
        adapter: AdapterTensors::view(flat, &dims, Some(&rows)),
        ..LayerTensors::view(&weights, &layer.dims).unwrap()
    };
    let loss = |flat: &Tensor, x: &Tensor| {
        let (y, _) = layer
            .forward(&view(flat), x.copy(), facts, &SingleRank, Recompute::Light)
            .unwrap();
        dot(&y, &d_out)
    };
    let mut gradients = Vec::new();
    for recompute in [Recompute::None, Recompute::Light, Recompute::Full] {
        let d_flat = Tensor::full([numel(trained)], f64::NAN, (Kind::Float, Device::Cpu));
        let d_adapters = AdapterTensors::view(&d_flat, &dims, None).unwrap();
        let (_, saved) = layer
            .forward(&view(&flat), x.copy(), facts, &SingleRank, recompute)
            .unwrap();
        let d_x = layer
            .backward(
                &view(&flat),
                Gradients::Adapter(Some(&d_adapters)),
                Accumulate::First.into(),
                saved,
                d_out.copy(),
                None,
                &SingleRank,
            )
            .unwrap();
        gradients.push((d_x, d_flat));
    }
    let (d_x, d_flat) = &gradients[0];
    for (other_d_x, other_d_flat) in &gradients[1..] {
        assert!(
            d_x.equal(other_d_x) && d_flat.equal(other_d_flat),
            "{label}: recomputing changes bits"
        );
    }
    let direction = randn(&[tokens, 16], 4, 1.0) / 20.0;
    let numeric = slope(&x, &direction, &|x| loss(&flat, x));
    assert_slope(&format!("{label}: d_x"), dot(d_x, &direction), numeric, 1.0);
    let mut offset = 0;
    for parameter in &trained.parameters {
        let len = parameter.numel() as i64;
        let direction = flat.zeros_like();
        direction
            .narrow(0, offset, len)
            .copy_(&(randn(&[len], 5, 1.0) / (len as f64).sqrt()));
        offset += len;
        let numeric = slope(&flat, &direction, &|flat| loss(flat, &x));
        let label = format!("{label}: d_{}", parameter.name);
        assert_slope(&label, dot(d_flat, &direction), numeric, 0.5);
    }
}

fn check_layer(
    label: &str,
    config: &ModelConfig,
    layer: &DecoderLayer,
    documents: Option<&Arc<Documents>>,
) {
    let numel = ModuleTree::new(config).units[1]
        .parameters
        .iter()
        .map(|p| p.numel())
        .sum::<usize>() as i64;
    let tokens = (ROWS * SEQ) as i64;
    let flat = randn(&[numel], 1, 0.3);
    let x = randn(&[tokens, 16], 2, 1.0);
    let d_out = randn(&[tokens, 16], 3, 1.0);
    let facts = TokenFacts {
        documents,
        ..TokenFacts::default()
    };
    let loss = |flat: &Tensor, x: &Tensor| {
        let weights = LayerTensors::view(flat, &layer.dims).unwrap();
        let (y, _) = layer
            .forward(&weights, x.copy(), facts, &SingleRank, Recompute::Light)
            .unwrap();
        dot(&y, &d_out)
    };
    let mut gradients = Vec::new();
    for recompute in [Recompute::None, Recompute::Light, Recompute::Full] {
        let weights = LayerTensors::view(&flat, &layer.dims).unwrap();
        let d_flat = Tensor::full([numel], f64::NAN, (Kind::Float, Device::Cpu));
        let d_weights = LayerTensors::view(&d_flat, &layer.dims).unwrap();
        let (_, saved) = layer
            .forward(&weights, x.copy(), facts, &SingleRank, recompute)
            .unwrap();
        let d_x = layer
            .backward(
                &weights,
                Gradients::Weights(&d_weights),
                Accumulate::First.into(),
                saved,
                d_out.copy(),
                None,
                &SingleRank,
            )
            .unwrap();
        gradients.push((d_x, d_flat));
    }
    let (d_x, d_flat) = &gradients[0];
    assert!(
        d_x.equal(&gradients[1].0) && d_flat.equal(&gradients[1].1),
        "{label}: recomputing changes bits"
    );

    let direction = randn(&[tokens, 16], 4, 1.0) / 20.0;
    let numeric = slope(&x, &direction, &|x| loss(&flat, x));
    assert_slope(&format!("{label}: d_x"), dot(d_x, &direction), numeric, 1.0);
    // Every parameter by itself, so that a small one cannot hide behind a large one.
    let mut offset = 0;
    for parameter in &ModuleTree::new(config).units[1].parameters {
        let len = parameter.numel() as i64;
        let direction = Tensor::zeros([numel], (Kind::Float, Device::Cpu));
        direction
            .narrow(0, offset, len)
            .copy_(&(randn(&[len], 5, 1.0) / (len as f64).sqrt()));
        offset += len;
        let numeric = slope(&flat, &direction, &|flat| loss(flat, &x));
        let name = &parameter.name;
        assert_slope(
            &format!("{label}: d_{name}"),
            dot(d_flat, &direction),
            numeric,
            0.5,
        );
    }
}

/// Over the tokens with a target, the sum of the squares of the logarithm of the sum of all `e^logit`.
fn squares(head: &Head, weights: &HeadTensors, x: &Tensor, targets: &Tensor) -> f64 {
    let logits = head.logits(weights, x, &SingleRank).unwrap();
    let columns = logits.size()[1] as usize;
    let logits = logits.to_vec::<f64>();
    let rows = logits.chunks(columns).zip(targets.to_vec::<i64>());
    rows.filter(|(_, target)| *target >= 0)
        .map(|(row, _)| row.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2))
        .sum()
}

#[test]
fn the_heads_gradients_are_the_derivative_of_its_loss_for_any_chunk() {
    let (tokens, hidden, vocab) = (10i64, 6usize, 9usize);
    let capped = Bend {
        scale: 0.7,
        soft_cap: Some(2.0),
    };
    let gemma = NormSpec {
        adds_one: true,
        rounds_last: true,
        ..NormSpec::new(1e-6)
    };
    let plain = NormSpec::new(1e-6);
    for (tied, bend, norm, z_loss) in [
        (false, Bend::NONE, plain, 0.0),
        (true, Bend::NONE, plain, 0.0),
        (true, capped, gemma, 0.0),
        (false, capped, plain, 0.1),
        (false, Bend::NONE, plain, 0.1),
    ] {
        let numel = (vocab * hidden + hidden) as i64;
        let flat = randn(&[numel], 1, 0.5);
        let x = randn(&[tokens, hidden as i64], 2, 1.0);
        let targets = Tensor::from_slice(&[0i64, 8, -100, 3, 3, 7, -100, 1, 2, 5]);
        let scale = 0.125;
        let run = |flat: &Tensor, x: &Tensor, chunk_rows: usize| {
            let head = Head {
                vocab: 0..vocab as i64,
                norm,
                bend,
                z_loss,
                matmul: Kind::Float,
                chunk_rows,
                scratch: Scratch::default(),
            };
            let d_flat = Tensor::zeros([numel], (Kind::Float, Device::Cpu));
            let views = |t: &Tensor| HeadTensors::view(t, hidden, vocab, tied).unwrap();
            let output = head
                .loss_and_gradient(
                    &views(flat),
                    Some(&views(&d_flat)),
                    Accumulate::First,
                    x,
                    &targets,
                    scale.into(),
                    &SingleRank,
                )
                .unwrap();
            let mut loss = output.loss_sum.double_value() * scale;
            if z_loss > 0.0 {
                loss += z_loss * scale * squares(&head, &views(flat), x, &targets);
            }
            (loss, output.d_x, d_flat)
        };
        for chunk_rows in [1, 3, 64] {
            let (_, d_x, d_flat) = run(&flat, &x, chunk_rows);
            let direction = randn(&[tokens, hidden as i64], 4, 0.2);
            let numeric = slope(&x, &direction, &|x| run(&flat, x, chunk_rows).0);
            assert_slope(
                &format!("chunks of {chunk_rows}: d_x"),
                dot(&d_x, &direction),
                numeric,
                0.1,
            );
            let direction = randn(&[numel], 5, 0.2);
            let numeric = slope(&flat, &direction, &|flat| run(flat, &x, chunk_rows).0);
            assert_slope(
                &format!("chunks of {chunk_rows}: d_weights"),
                dot(&d_flat, &direction),
                numeric,
                0.1,
            );
        }
    }
}

#[test]
fn the_embeddings_gradient_is_the_transpose_of_its_lookup() {
    let embedding = Embedding {
        vocab: 0..7,
        residual: Kind::Float,
        scale: 2.5,
    };
    let ids = Tensor::from_slice(&[3i64, 0, 6, 3, 3]);
    let (table, d_out) = (randn(&[7, 4], 1, 1.0), randn(&[5, 4], 2, 1.0));
    let d_table = table.zeros_like();
    embedding
        .backward(&d_table, &d_out, &ids, &SingleRank)
        .unwrap();
    let out = embedding.forward(&table, &ids, &SingleRank).unwrap();
    // The lookup is linear: <lookup(table), d_out> = <table, d_table>.
    let (left, right) = (dot(&out, &d_out), dot(&table, &d_table));
    assert!((left - right).abs() < 1e-5, "{left} {right}");
}

#[test]
fn views_cover_a_layers_buffer_in_the_order_of_its_parameters() {
    for change in [
        json!({"attention_bias": true, "mlp_bias": true}),
        json!({"architectures": ["Qwen3ForCausalLM"]}),
        json!({"architectures": ["Gemma3ForCausalLM"]}),
        json!({"architectures": ["Phi3ForCausalLM"]}),
        json!({"architectures": ["Olmo2ForCausalLM"]}),
    ] {
        let config = config(change);
        let unit = &ModuleTree::new(&config).units[1];
        let numel: usize = unit.parameters.iter().map(|p| p.numel()).sum();
        let flat = Tensor::from_slice(&(0..numel).map(|i| i as f32).collect::<Vec<_>>());
        let views = LayerTensors::view(&flat, &LayerDims::whole(&config, 0)).unwrap();
        let MlpTensors::Dense(mlp) = &views.mlp else {
            panic!("a dense layer");
        };
        let start = |end: &str| -> f64 {
            let before = unit
                .parameters
                .iter()
                .take_while(|p| !p.name.ends_with(end));
            before.map(|p| p.numel()).sum::<usize>() as f64
        };
        let first = |t: &Tensor| t.flatten(0, -1).get(0).double_value();
        let [qkv, gate_up] = [config.qkv, config.gate_up].map(|parts| parts[0].name);
        let start_of = |name: &str, kind: &str| start(&format!("{name}.{kind}"));
        assert_eq!(first(&views.qkv_weight), start_of(qkv, "weight"));
        assert_eq!(first(&views.o_weight), start("o_proj.weight"));
        assert_eq!(first(&mlp.gate_up_weight), start_of(gate_up, "weight"));
        assert_eq!(first(&mlp.down_weight), start("down_proj.weight"));
        for (view, end) in [
            (&views.qkv_bias, "q_proj.bias"),
            (&views.q_norm, "q_norm.weight"),
            (&views.k_norm, "k_norm.weight"),
            (&views.o_bias, "o_proj.bias"),
            (&mlp.gate_up_bias, "gate_proj.bias"),
            (&mlp.down_bias, "down_proj.bias"),
        ] {
            if let Some(view) = view {
                assert_eq!(first(view), start(end), "{end}");
            }
        }
        let norms = &config.layer_norms;
        for (view, name) in [
            (&views.norm_before_attention, norms.before_attention),
            (&views.norm_after_attention, norms.after_attention),
            (&views.norm_before_mlp, norms.before_mlp),
            (&views.norm_after_mlp, norms.after_mlp),
        ] {
            assert_eq!(view.is_some(), name.is_some());
            if let (Some(view), Some(name)) = (view, name) {
                assert_eq!(first(view), start_of(name, "weight"), "{name}");
            }
        }
        assert!(
            LayerTensors::view(
                &flat.narrow(0, 1, numel as i64 - 1),
                &LayerDims::whole(&config, 0)
            )
            .is_none()
        );
    }
}
