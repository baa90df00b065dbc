//! Keys that change what a model computes, and that its family does not have: refused unless they change nothing.
//!
//! A config may have any number of keys that nobody reads. These are those that somebody's model reads.

use serde_json::Value;

use super::ConfigError;
use super::keys::{Keys, wrong};

/// The value with which a key changes nothing.
#[derive(Clone, Copy)]
enum Neutral {
    Zero,
    One,
    False,
    True,
    Absent,
    /// A list in which nothing is 0.
    AllOn,
}

use Neutral::{Absent, AllOn, False, One, True, Zero};

const KEYS: [(&str, Neutral); 33] = [
    ("embd_pdrop", Zero),
    ("resid_pdrop", Zero),
    ("hidden_dropout", Zero),
    ("residual_dropout", Zero),
    ("attention_chunk_size", Absent),
    ("attn_logit_softcapping", Absent),
    ("final_logit_softcapping", Absent),
    ("query_pre_attn_scalar", Absent),
    ("attention_multiplier", Absent),
    ("embedding_multiplier", One),
    ("residual_multiplier", One),
    ("logits_scaling", One),
    ("logit_scale", One),
    ("scale_emb", One),
    ("use_bidirectional_attention", False),
    ("is_causal", True),
    ("no_rope_layers", AllOn),
    ("rope_local_base_freq", Absent),
    ("rope_interleaved", False),
    ("use_mrope", False),
    ("use_qk_norm", False),
    ("qk_layernorm", False),
    ("clip_qkv", Absent),
    ("qkv_clip", Absent),
    ("attn_output_gate", False),
    ("lm_head_bias", False),
    ("alibi", False),
    ("use_parallel_residual", False),
    ("num_experts", Zero),
    ("num_local_experts", Zero),
    ("n_routed_experts", Zero),
    ("kv_lora_rank", Absent),
    ("q_lora_rank", Absent),
];

/// Refuses what would change the computation and is not among the keys that the family `reads`.
pub(super) fn refuse(keys: &Keys<'_>, family: &str, reads: &[&str]) -> Result<(), ConfigError> {
    refuse_quantised(keys)?;
    for (key, neutral) in KEYS {
        let Some(value) = keys.get(key) else {
            continue;
        };
        let changes_nothing = match neutral {
            Zero => value.as_f64() == Some(0.0),
            One => value.as_f64() == Some(1.0),
            False => value == &Value::Bool(false),
            True => value == &Value::Bool(true),
            Absent => false,
            AllOn => value
                .as_array()
                .is_some_and(|list| list.iter().all(|on| on.as_u64().is_some_and(|on| on > 0))),
        };
        if changes_nothing || reads.contains(&key) {
            continue;
        }
        let instead = match neutral {
            Zero => "only 0 is supported",
            One => "only 1 is supported",
            False => "only false is supported",
            True => "only true is supported",
            Absent => "only null is supported",
            AllOn => "only a list of ones is supported",
        };
        return Err(wrong(key, value, &format!("for {family} {instead}")));
    }
    Ok(())
}

/// Also where the weights are not quantised: transformers would quantise them, and those of an export, as it loads them.
fn refuse_quantised(keys: &Keys<'_>) -> Result<(), ConfigError> {
    let key = "quantization_config";
    let Some(value) = keys.get(key) else {
        return Ok(());
    };
    let method = value.get("quant_method").and_then(Value::as_str);
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let method = method.filter(|method| method.len() < 40 && method.chars().all(is_name));
    Err(ConfigError::Value {
        key,
        value: method.map_or_else(|| "there".to_owned(), |method| format!("that of {method}")),
        expected: "quantised weights are not trained, convert them first: train the model that they were made from, or load them \
                   with transformers, dequantize() and save. Where the weights are not quantised, take the key out"
            .to_owned(),
    })
}
