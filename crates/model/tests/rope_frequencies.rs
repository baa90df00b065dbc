//! Frequencies of the scaled rotary embeddings against those of Hugging Face transformers.
//!
//! The golden cases train with the default and the llama3 kind only, so the others are held against numbers here. These are
//! transformers 5.24's `LlamaRotaryEmbedding(LlamaConfig(max_position_embeddings=.., head_dim=.., rope_parameters=..))`,
//! its `attention_scaling` and its fp32 `inv_freq` with nine digits, enough to tell every fp32 from its neighbours.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use serde_json::{Map, Value, json};
use tandem_model::{ModelConfig, RopeTable};
use tandem_tensor::{Device, Tensor};

/// Powers and products in fp32, in another order than theirs: a few units in the last place.
const FREQUENCY_TOLERANCE: f64 = 5e-7;
const ATTENTION_FACTOR_TOLERANCE: f64 = 2e-7;

struct Case {
    name: &'static str,
    head_dim: usize,
    max_position_embeddings: usize,
    rope_parameters: &'static str,
    attention_factor: f64,
    inv_freq: &'static [f64],
}

#[rustfmt::skip] // one line of numbers a case, as they were printed
const CASES: &[Case] = &[
    Case {
        name: "linear",
        head_dim: 16,
        max_position_embeddings: 16384,
        rope_parameters: r#"{"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}"#,
        attention_factor: 1.0,
        inv_freq: &[0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05],
    },
    Case {
        name: "linear, by no whole number",
        head_dim: 16,
        max_position_embeddings: 4096,
        rope_parameters: r#"{"rope_type": "linear", "factor": 2.5, "rope_theta": 500000.0}"#,
        attention_factor: 1.0,
        inv_freq: &[0.400000006, 0.0775691047, 0.0150424121, 0.00291706598, 0.00056568539, 0.000109699278, 2.12731829e-05, 4.12535428e-06],
    },
    Case {
        name: "llama3",
        head_dim: 32,
        max_position_embeddings: 131072,
        rope_parameters: r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_theta": 500000.0}"#,
        attention_factor: 1.0,
        inv_freq: &[1.0, 0.440366626, 0.193922758, 0.0853971019, 0.0376060307, 0.0165604409, 0.00729266508, 0.00321144611, 0.000524846022, 7.78465546e-05, 3.42810235e-05, 1.50962178e-05, 6.64786967e-06, 2.92749974e-06, 1.28917316e-06, 5.6770881e-07],
    },
    Case {
        name: "yarn",
        head_dim: 64,
        max_position_embeddings: 131072,
        rope_parameters: r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1000000.0}"#,
        attention_factor: 1.138629436111989,
        inv_freq: &[1.0, 0.649381638, 0.421696514, 0.273841977, 0.177827939, 0.115478203, 0.0749894157, 0.0486967526, 0.0316227786, 0.0205352511, 0.0133352149, 0.00865964312, 0.00515479548, 0.0030431177, 0.00177853031, 0.00102661771, 0.000583333371, 0.000324690831, 0.000175706868, 9.12806499e-05, 4.44569851e-05, 2.88695483e-05, 1.87473561e-05, 1.21741887e-05, 7.90569356e-06, 5.13381246e-06, 3.33380353e-06, 2.16491094e-06, 1.40585337e-06, 9.1293532e-07, 5.92843435e-07, 3.84981632e-07],
    },
    Case {
        name: "yarn, with betas",
        head_dim: 32,
        max_position_embeddings: 8192,
        rope_parameters: r#"{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0, "beta_slow": 2.0, "rope_theta": 10000.0}"#,
        attention_factor: 1.2079441541679836,
        inv_freq: &[1.0, 0.562341332, 0.316227764, 0.177827939, 0.100000001, 0.0439329147, 0.0177878123, 0.00611283537, 0.00124999997, 0.000702926656, 0.000395284733, 0.000222284929, 0.000125000006, 7.02926627e-05, 3.95284733e-05, 2.22284925e-05],
    },
    Case {
        name: "yarn, ramp not rounded, with attention factor",
        head_dim: 32,
        max_position_embeddings: 8192,
        rope_parameters: r#"{"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096, "attention_factor": 0.75, "truncate": false, "rope_theta": 150000.0}"#,
        attention_factor: 0.75,
        inv_freq: &[1.0, 0.47478205, 0.225418001, 0.107024416, 0.0508132726, 0.021652855, 0.00904944353, 0.00371208414, 0.00148495403, 0.000612940989, 0.000291013392, 0.000138167932, 6.55996555e-05, 3.11455406e-05, 1.47873434e-05, 7.02076568e-06],
    },
    Case {
        name: "yarn, with mscale and mscale_all_dim",
        head_dim: 32,
        max_position_embeddings: 163840,
        rope_parameters: r#"{"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.707, "rope_theta": 10000.0}"#,
        attention_factor: 1.0857263992561355,
        inv_freq: &[1.0, 0.562341332, 0.316227764, 0.177827939, 0.100000001, 0.0562341288, 0.0272181761, 0.0128290169, 0.00582142826, 0.00249036867, 0.000959977158, 0.000292145909, 2.49999994e-05, 1.40585325e-05, 7.90569447e-06, 4.44569832e-06],
    },
    Case {
        name: "yarn, with mscale alone",
        head_dim: 16,
        max_position_embeddings: 8192,
        rope_parameters: r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "mscale": 0.5, "rope_theta": 10000.0}"#,
        attention_factor: 1.138629436111989,
        inv_freq: &[1.0, 0.316227764, 0.100000001, 0.025693506, 0.00624999963, 0.00138349656, 0.000250000012, 7.90569466e-05],
    },
    Case {
        name: "yarn, ramp of no width",
        head_dim: 16,
        max_position_embeddings: 16,
        rope_parameters: r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4, "rope_theta": 10000.0}"#,
        attention_factor: 1.138629436111989,
        inv_freq: &[1.0, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05],
    },
    Case {
        name: "yarn, original length not given",
        head_dim: 16,
        max_position_embeddings: 2048,
        rope_parameters: r#"{"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}"#,
        attention_factor: 1.138629436111989,
        inv_freq: &[1.0, 0.316227764, 0.100000001, 0.025693506, 0.00624999963, 0.00138349656, 0.000250000012, 7.90569466e-05],
    },
];

#[test]
fn frequencies_and_attention_factors_are_those_of_transformers() {
    for case in CASES {
        let parameters: Value = serde_json::from_str(case.rope_parameters).unwrap();
        // Position 1 turns every pair of dimensions by its frequency.
        let (frequencies, factors) = angles_and_lengths(&table(case, parameters), 1);
        assert_eq!(frequencies.len(), case.inv_freq.len(), "{}", case.name);
        let worst = worst_relative(&frequencies, case.inv_freq);
        let expected = vec![case.attention_factor; factors.len()];
        let worst_factor = worst_relative(&factors, &expected);
        println!(
            "{}: frequencies off by {worst:.1e}, attention factor by {worst_factor:.1e}",
            case.name
        );
        assert!(
            worst < FREQUENCY_TOLERANCE,
            "{}: {frequencies:?}, but transformers has {:?}",
            case.name,
            case.inv_freq
        );
        assert!(
            worst_factor < ATTENTION_FACTOR_TOLERANCE,
            "{}: {factors:?}",
            case.name
        );
    }
}

#[test]
fn the_keys_of_transformers_4_describe_the_same_tables() {
    for case in CASES {
        let new = serde_json::from_str(case.rope_parameters).unwrap();
        let mut scaling: Map<String, Value> = serde_json::from_str(case.rope_parameters).unwrap();
        let mut old = config_json(case);
        old["rope_theta"] = scaling.remove("rope_theta").unwrap();
        let kind = scaling.remove("rope_type").unwrap();
        scaling.insert("type".to_owned(), kind);
        old["rope_scaling"] = scaling.into();
        let (old, new) = (table_of(old), table(case, new));
        println!("{}", case.name);
        assert!(
            old.cos.equal(&new.cos) && old.sin.equal(&new.sin),
            "{}",
            case.name
        );
    }
}

/// Enough rows to see position 1; frequencies do not depend on it.
const SEQ: usize = 2;

fn config_json(case: &Case) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": case.head_dim, "num_hidden_layers": 1, "intermediate_size": 8,
        "vocab_size": 16, "max_position_embeddings": case.max_position_embeddings,
    })
}

fn table(case: &Case, parameters: Value) -> RopeTable {
    let mut json = config_json(case);
    json["rope_parameters"] = parameters;
    table_of(json)
}

fn table_of(json: Value) -> RopeTable {
    let config = ModelConfig::from_json(json.as_object().unwrap()).unwrap();
    let rope = config.rope[0].as_ref().unwrap();
    RopeTable::new(rope, config.rotary_dim, SEQ, Device::Cpu)
}

/// The row of a position as polar coordinates: by which angle, and how far.
fn angles_and_lengths(table: &RopeTable, position: i64) -> (Vec<f64>, Vec<f64>) {
    let row = |tensor: &Tensor| tensor.get(position).to_vec::<f32>();
    row(&table.cos)
        .iter()
        .zip(row(&table.sin))
        .map(|(&cos, sin)| (f64::from(cos), f64::from(sin)))
        .map(|(cos, sin)| (sin.atan2(cos), sin.hypot(cos)))
        .unzip()
}

fn worst_relative(found: &[f64], expected: &[f64]) -> f64 {
    let errors = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found / expected - 1.0).abs());
    errors.fold(0.0, f64::max)
}
