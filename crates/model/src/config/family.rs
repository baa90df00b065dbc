//! What differs between the families: their names, what transformers takes where a config is silent, and which layers slide.
//!
//! The defaults are those of transformers 5.24 (`models/*/configuration_*.py`), of which each class has its own. Sizes that
//! the tensors of the weights have are never made up: a config without them is refused.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{Architecture, ConfigError};

/// What a family takes for keys that a config does not have.
pub(super) struct Defaults {
    /// `num_key_value_heads`; `None` is as many as there are query heads, which is what `null` means in every family.
    pub(super) kv_heads: Option<usize>,
    /// `max_position_embeddings`.
    pub(super) max_position: usize,
    /// `sliding_window`. `null` is none.
    pub(super) window: Option<usize>,
    /// `head_dim`; `None` is hidden_size / num_attention_heads.
    pub(super) head_dim: Option<usize>,
}

impl Defaults {
    pub(super) fn of(architecture: Architecture) -> Self {
        let (kv_heads, max_position, window, head_dim) = match architecture {
            Architecture::Llama => (None, 2048, None, None),
            Architecture::Mistral => (Some(8), 131_072, Some(4096), None),
            Architecture::Qwen2 => (Some(32), 32_768, Some(4096), None),
            Architecture::Qwen3 => (Some(32), 32_768, Some(4096), Some(128)),
        };
        Self {
            kv_heads,
            max_position,
            window,
            head_dim,
        }
    }
}

/// The family that a config names.
pub(super) fn architecture(json: &Map<String, Value>) -> Result<Architecture, ConfigError> {
    let keys = Keys(json);
    let named = match keys.list("architectures")?.and_then(<[Value]>::first) {
        None => None,
        Some(Value::String(name)) => Some(name.as_str()),
        Some(other) => {
            return Err(ConfigError::Value {
                key: "architectures",
                value: format!("a list with {other}"),
                expected: "it must be a list of names".to_owned(),
            });
        }
    };
    let model_type = keys.text("model_type")?;
    match (named, model_type) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Ok(Architecture::Llama),
        (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => Ok(Architecture::Mistral),
        (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Ok(Architecture::Qwen2),
        (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => Ok(Architecture::Qwen3),
        (named, model_type) => Err(ConfigError::Architecture {
            found: named.or(model_type).unwrap_or("(none)").to_owned(),
        }),
    }
}

/// Which layers slide: `layer_types` where it is given (transformers 5), else the older keys.
pub(super) fn sliding_windows(
    keys: &Keys<'_>,
    architecture: Architecture,
    default: Option<usize>,
    num_layers: usize,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let types = keys.list("layer_types")?;
    let uses_window = keys.flag("use_sliding_window", false)?;
    let first_sliding = keys.count_or("max_window_layers", 28)?;
    let window = match keys.0.get("sliding_window") {
        None => default,
        Some(Value::Null) => None,
        Some(_) => Some(keys.any_size_or("sliding_window", 1)?),
    };
    let (window, first_sliding) = match architecture {
        Architecture::Llama => return Ok(vec![None; num_layers]),
        Architecture::Mistral => (window, 0),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            (window.filter(|_| uses_window), first_sliding)
        }
    };
    let Some(types) = types else {
        return Ok((0..num_layers as u64)
            .map(|layer| window.filter(|_| layer >= first_sliding))
            .collect());
    };
    if types.len() < num_layers {
        return Err(ConfigError::Value {
            key: "layer_types",
            value: format!("a list of {}", types.len()),
            expected: format!("num_hidden_layers is {num_layers}"),
        });
    }
    let kept = types.iter().take(num_layers);
    kept.map(|kind| match (kind.as_str(), window) {
        // The second is the older name.
        (Some("full_attention" | "attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
        (Some("sliding_attention"), None) => Err(ConfigError::Value {
            key: "layer_types",
            value: kind.to_string(),
            expected:
                "there is no window: sliding_window is null, or use_sliding_window is not true"
                    .to_owned(),
        }),
        _ => Err(ConfigError::Value {
            key: "layer_types",
            value: kind.to_string(),
            expected: "only full_attention and sliding_attention are supported".to_owned(),
        }),
    })
    .collect()
}
