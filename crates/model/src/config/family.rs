//! The families, and which of them a config is of.
//!
//! A file a family, readable beside transformers' `configuration_*.py` and `modeling_*.py` of the same name (5.24), says what
//! its config means. Nothing outside these files asks for a family.

mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod olmo3;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;

use serde_json::{Map, Value};

use super::keys::Keys;
use super::unsupported;
use super::{ConfigError, ModelConfig};

/// A model family.
struct Family {
    /// As messages, and fingerprints of runs, call it.
    name: &'static str,
    /// Its class, in `architectures`.
    class: &'static str,
    /// Its name in `model_type`.
    model_type: &'static str,
    /// Keys that only some families have, and that this one reads.
    reads: &'static [&'static str],
    /// What a config of it means.
    describe: fn(&Keys<'_>) -> Result<ModelConfig, ConfigError>,
}

/// All of them.
const FAMILIES: [&Family; 13] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &olmo2::FAMILY,
    &olmo3::FAMILY,
    &smollm3::FAMILY,
    &granite::FAMILY,
    &mixtral::FAMILY,
    &qwen3_moe::FAMILY,
];

/// What a parsed `config.json` describes.
pub(super) fn describe(json: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let text = text_part(json)?;
    let json = text.as_ref().unwrap_or(json);
    let family = family(json)?.map_err(|found| ConfigError::Architecture {
        found: found.unwrap_or_else(|| "(none)".to_owned()),
        supported: FAMILIES.map(|family| family.class).join(", "),
    })?;
    let keys = Keys(json);
    unsupported::refuse(&keys, family.name, family.reads)?;
    (family.describe)(&keys)
}

/// The config of the text part of a multimodal model, as that of a model by itself; `None` where `json` is not of one.
pub(super) fn text_part(
    json: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>, ConfigError> {
    let Some(text) = Keys(json).object("text_config")? else {
        return Ok(None);
    };
    // A class that is known is that of the text part itself.
    if family(json)?.is_ok() {
        return Ok(None);
    }
    let mut text = text.clone();
    // Which the whole model has beside its parts.
    for key in [
        "tie_word_embeddings",
        "dtype",
        "torch_dtype",
        "quantization_config",
    ] {
        if let (None, Some(value)) = (Keys(&text).get(key), Keys(json).get(key)) {
            text.insert(key.to_owned(), value.clone());
        }
    }
    if let Ok(family) = family(&text)? {
        text.insert("architectures".to_owned(), vec![family.class].into());
    }
    Ok(Some(text))
}

/// The family that a config names, or what it names instead.
fn family(
    json: &Map<String, Value>,
) -> Result<Result<&'static Family, Option<String>>, ConfigError> {
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
    let found = FAMILIES.into_iter().find(|family| match named {
        Some(class) => family.class == class,
        None => model_type == Some(family.model_type),
    });
    Ok(found.ok_or_else(|| named.or(model_type).map(str::to_owned)))
}
