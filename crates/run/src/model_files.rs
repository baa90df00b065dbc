//! The small files of a model, kept with the experiment so that its checkpoints can be exported anywhere.

use std::path::Path;

use serde_json::Value;
use tandem_checkpoint::{ModelFile, RunDir};
use tandem_model::ModelConfig;

use crate::failure::{Failure, Outcome};

const CONFIG: &str = "config.json";

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

/// Copies those of `model_dir` that are there. The copied config says how many layers are trained.
pub fn keep(run: &RunDir, model_dir: &Path, config: &ModelConfig) -> Outcome<()> {
    for name in NAMES {
        let path = model_dir.join(name);
        if !path.is_file() {
            continue;
        }
        let mut bytes = std::fs::read(&path)
            .map_err(|error| Failure::other(format!("cannot read {}: {error}", path.display())))?;
        if name == CONFIG {
            bytes = with_layers(&bytes, config.num_layers);
        }
        let file = ModelFile {
            name: name.to_owned(),
            bytes,
        };
        run.put_model_file(&file).map_err(Failure::other)?;
    }
    Ok(())
}

fn with_layers(config: &[u8], num_layers: usize) -> Vec<u8> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(config) else {
        return config.to_vec();
    };
    object.insert("num_hidden_layers".to_owned(), num_layers.into());
    if let Some(Value::Array(types)) = object.get_mut("layer_types") {
        types.truncate(num_layers);
    }
    serde_json::to_vec_pretty(&object).unwrap_or_else(|_| config.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_says_how_many_layers_there_are() {
        let config = br#"{"num_hidden_layers": 24, "layer_types": ["a", "b", "c"], "x": 1}"#;
        let written: Value = serde_json::from_slice(&with_layers(config, 2)).unwrap();
        let expected =
            serde_json::json!({"num_hidden_layers": 2, "layer_types": ["a", "b"], "x": 1});
        assert_eq!(written, expected);
    }
}
