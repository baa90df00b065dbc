//! The small files of a model, kept with the experiment so that its checkpoints can be exported anywhere.

use std::path::Path;

use serde_json::Value;
use tandem_checkpoint::{ModelFile, RunDir};
use tandem_model::ModelConfig;

use crate::failure::{Failure, Outcome};

const CONFIG: &str = "config.json";

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
    object.insert("num_hidden_layers".to_owned(), config.num_layers.into());
    if let Some(Value::Array(types)) = object.get_mut("layer_types") {
        types.truncate(config.num_layers);
    }
    // The weights may have a head of their own although the config ties it.
    if object.get("tie_word_embeddings") == Some(&Value::Bool(true)) {
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
}
