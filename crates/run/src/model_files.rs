//! The small files of a model, kept with the experiment so that its checkpoints can be exported anywhere.

use std::path::Path;

use serde_json::Value;
use tandem_checkpoint::{ModelFile, RunDir};
use tandem_model::ModelConfig;

use crate::failure::{Failure, Outcome};

/// Its description.
pub const CONFIG: &str = "config.json";

/// What can be kept of one of them, because no more is read again.
const MAX_BYTES: u64 = 512 << 20;

/// What transformers looks for beside the weights.
const NAMES: [&str; 10] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Copies those of `model_dir` that are there. The copied config says how many layers are trained, and whether the head is tied.
pub fn keep(run: &RunDir, model_dir: &Path, config: &ModelConfig) -> Outcome<()> {
    for name in NAMES {
        let path = model_dir.join(name);
        if !path.is_file() {
            continue;
        }
        let cannot = |error| Failure::other(format!("cannot read {}: {error}", path.display()));
        let size = path.metadata().map_err(cannot)?.len();
        if size > MAX_BYTES {
            return Err(Failure::other(format!(
                "{} has {size} bytes, and such a file may have {} MiB",
                path.display(),
                MAX_BYTES >> 20
            )));
        }
        let mut bytes = std::fs::read(&path).map_err(cannot)?;
        if name == CONFIG {
            bytes = as_trained(&bytes, config);
        }
        let file = ModelFile {
            name: name.to_owned(),
            bytes,
        };
        run.put_model_file(&file).map_err(Failure::other)?;
    }
    Ok(())
}

fn as_trained(json: &[u8], config: &ModelConfig) -> Vec<u8> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(json) else {
        return json.to_vec();
    };
    // Of a larger model, the text part is what was trained.
    if let Ok(Some(text)) = ModelConfig::text_part(&object) {
        object = text;
    }
    object.insert("num_hidden_layers".to_owned(), config.num_layers.into());
    for key in ["layer_types", "no_rope_layers"] {
        if let Some(Value::Array(of_layers)) = object.get_mut(key) {
            of_layers.truncate(config.num_layers);
        }
    }
    // The weights may have a head of their own although the config, or its family, ties it.
    let said = object.get("tie_word_embeddings").and_then(Value::as_bool);
    if said == Some(true) || (said.is_none() && !config.tie_word_embeddings) {
        object.insert(
            "tie_word_embeddings".to_owned(),
            config.tie_word_embeddings.into(),
        );
    }
    serde_json::to_vec_pretty(&object).unwrap_or_else(|_| json.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_says_what_was_trained() {
        let json = br#"{"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 24, "hidden_size": 8,
            "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 8, "vocab_size": 8,
            "layer_types": ["full_attention", "full_attention", "full_attention"], "tie_word_embeddings": true, "x": 1}"#;
        let mut object: Value = serde_json::from_slice(json).unwrap();
        object["num_hidden_layers"] = 3.into();
        let config = ModelConfig::from_json(object.as_object().unwrap()).unwrap();
        let mut config = config.truncated(2).unwrap();
        let written = |config: &ModelConfig| -> Value {
            serde_json::from_slice(&as_trained(json, config)).unwrap()
        };
        object["num_hidden_layers"] = 2.into();
        object["layer_types"] = serde_json::json!(["full_attention", "full_attention"]);
        assert_eq!(written(&config), object);
        config.tie_word_embeddings = false;
        object["tie_word_embeddings"] = false.into();
        assert_eq!(written(&config), object);
    }

    /// Exports of a multimodal model's text part are of a text model.
    #[test]
    fn of_a_larger_model_the_text_part_is_written() {
        let whole = serde_json::json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16",
            "text_config": {"model_type": "gemma3_text", "hidden_size": 16, "intermediate_size": 32,
                "num_hidden_layers": 6, "head_dim": 4, "vocab_size": 30},
            "vision_config": {"hidden_size": 99},
        });
        let config = ModelConfig::from_json(whole.as_object().unwrap()).unwrap();
        assert!(config.tie_word_embeddings && config.num_heads == 8);
        let config = config.truncated(2).unwrap();
        let written = as_trained(whole.to_string().as_bytes(), &config);
        let written: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(written["architectures"][0], "Gemma3ForCausalLM");
        assert_eq!(written["torch_dtype"], "bfloat16");
        assert!(written.get("vision_config").is_none());
        let again = ModelConfig::from_json(written.as_object().unwrap()).unwrap();
        assert_eq!(again, config);
    }
}
