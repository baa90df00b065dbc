//! A Hugging Face `config.json`, in the key style of transformers 4 or 5, as one validated description.

mod rope;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use rope::{RopeConfig, RopeScaling};

/// The supported model families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `LlamaForCausalLM`
    Llama,
    /// `MistralForCausalLM`
    Mistral,
    /// `Qwen2ForCausalLM`
    Qwen2,
    /// `Qwen3ForCausalLM`
    Qwen3,
}

/// Everything about a model that its computation depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; independent of `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence the positions are made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub o_bias: bool,
    /// The MLP's projections have a bias.
    pub mlp_bias: bool,
    /// q and k are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// Per layer: a query sees that many keys at most, itself included.
    pub sliding_window: Vec<Option<usize>>,
    /// Position embedding.
    pub rope: RopeConfig,
}

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}; a model folder holds config.json, tokenizer.json and *.safetensors")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a JSON object.
    #[error("{path} is not valid JSON: {reason}")]
    NotJson {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A family that is not built in.
    #[error(
        "architecture {found:?} is not supported; supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM"
    )]
    Architecture {
        /// What the file says.
        found: String,
    },
    /// A key that must be there is not.
    #[error("config.json lacks {key:?}")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value that cannot be right, or that is not supported.
    #[error("config.json: {key} is {value}, but {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What the file says.
        value: String,
        /// What would be right.
        expected: String,
    },
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and what is wrong with it.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        let value: Value = serde_json::from_str(&text).map_err(|error| ConfigError::NotJson {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        match value {
            Value::Object(map) => Self::from_json(&map),
            _ => Err(ConfigError::NotJson {
                path,
                reason: "the top level is not an object".to_owned(),
            }),
        }
    }

    /// The model that a parsed `config.json` describes.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and what is wrong with it.
    pub fn from_json(json: &Map<String, Value>) -> Result<Self, ConfigError> {
        let keys = Keys(json);
        let architecture = architecture(json)?;
        let hidden_size = keys.size("hidden_size")?;
        let num_heads = keys.size("num_attention_heads")?;
        let num_kv_heads = keys.size_or("num_key_value_heads", num_heads)?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(ConfigError::Value {
                key: "num_key_value_heads",
                value: num_kv_heads.to_string(),
                expected: format!("it must divide num_attention_heads = {num_heads}"),
            });
        }
        let default_head_dim = match architecture {
            Architecture::Qwen3 => 128,
            _ => hidden_size / num_heads,
        };
        let head_dim = keys.size_or("head_dim", default_head_dim)?;
        if !head_dim.is_multiple_of(2) {
            return Err(ConfigError::Value {
                key: "head_dim",
                value: head_dim.to_string(),
                expected: "rotary embedding needs an even number".to_owned(),
            });
        }
        let num_layers = keys.size("num_hidden_layers")?;
        keys.must_be(
            "hidden_act",
            &Value::from("silu"),
            "only SwiGLU (silu) is supported",
        )?;
        keys.must_be_number(
            "attention_dropout",
            0.0,
            "dropout in attention is not supported; set it to 0.0",
        )?;
        keys.must_be_number(
            "partial_rotary_factor",
            1.0,
            "partial rotary embedding is not supported",
        )?;
        let attention_bias = keys.flag("attention_bias", false)?;
        let (qkv_bias, o_bias) = match architecture {
            Architecture::Qwen2 => (true, false),
            Architecture::Mistral => (false, false),
            Architecture::Llama | Architecture::Qwen3 => (attention_bias, attention_bias),
        };
        let max_position_embeddings = keys.size("max_position_embeddings")?;
        Ok(Self {
            architecture,
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: keys.size("intermediate_size")?,
            vocab_size: keys.size("vocab_size")?,
            max_position_embeddings,
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)?,
            initializer_range: keys.number_or("initializer_range", 0.02)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            qkv_bias,
            o_bias,
            mlp_bias: architecture == Architecture::Llama && keys.flag("mlp_bias", false)?,
            qk_norm: architecture == Architecture::Qwen3,
            sliding_window: sliding_windows(&keys, architecture, num_layers)?,
            rope: RopeConfig::from_json(json, max_position_embeddings)?,
        })
    }

    /// The same model cut to its first `num_layers` layers; 0 keeps all.
    ///
    /// # Errors
    /// When the model has fewer layers than that.
    pub fn truncated(mut self, num_layers: usize) -> Result<Self, ConfigError> {
        if num_layers > self.num_layers {
            return Err(ConfigError::Value {
                key: "num_hidden_layers",
                value: self.num_layers.to_string(),
                expected: format!("--num_layers asks for {num_layers}"),
            });
        }
        if num_layers > 0 {
            self.num_layers = num_layers;
            self.sliding_window.truncate(num_layers);
        }
        Ok(self)
    }
}

fn architecture(json: &Map<String, Value>) -> Result<Architecture, ConfigError> {
    let named = json
        .get("architectures")
        .and_then(Value::as_array)
        .and_then(|list| list.first())
        .and_then(Value::as_str);
    let model_type = json.get("model_type").and_then(Value::as_str);
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
fn sliding_windows(
    keys: &Keys<'_>,
    architecture: Architecture,
    num_layers: usize,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let window = match keys.0.get("sliding_window") {
        None | Some(Value::Null) => None,
        Some(_) => Some(keys.size("sliding_window")?),
    };
    let qwen = matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3);
    let window = if qwen && !keys.flag("use_sliding_window", false)? {
        None
    } else {
        window
    };
    if architecture == Architecture::Llama {
        return Ok(vec![None; num_layers]);
    }
    if let Some(types) = keys.0.get("layer_types").and_then(Value::as_array) {
        if types.len() < num_layers {
            return Err(ConfigError::Value {
                key: "layer_types",
                value: format!("a list of {}", types.len()),
                expected: format!("num_hidden_layers is {num_layers}"),
            });
        }
        return types
            .iter()
            .take(num_layers)
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(window),
                _ => Err(ConfigError::Value {
                    key: "layer_types",
                    value: kind.to_string(),
                    expected: "only full_attention and sliding_attention are supported".to_owned(),
                }),
            })
            .collect();
    }
    let first_sliding = if qwen {
        keys.size_or("max_window_layers", 28)?
    } else {
        0
    };
    Ok((0..num_layers)
        .map(|layer| window.filter(|_| layer >= first_sliding))
        .collect())
}

/// Typed access to the keys of a JSON object.
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    /// A whole number of at least 1.
    fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Err(ConfigError::Missing { key }),
            Some(value) => match value.as_u64() {
                Some(number) if number > 0 => Ok(number as usize),
                _ => Err(ConfigError::Value {
                    key,
                    value: value.to_string(),
                    expected: "it must be a whole number of at least 1".to_owned(),
                }),
            },
        }
    }

    fn size_or(&self, key: &'static str, default: usize) -> Result<usize, ConfigError> {
        match self.0.get(key) {
            // `max_window_layers: 0` is legal: every layer slides.
            Some(value) if value.as_u64() == Some(0) && key == "max_window_layers" => Ok(0),
            None | Some(Value::Null) => Ok(default),
            Some(_) => self.size(key),
        }
    }

    fn number_or(&self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| ConfigError::Value {
                key,
                value: value.to_string(),
                expected: "it must be a number".to_owned(),
            }),
        }
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| ConfigError::Value {
                key,
                value: value.to_string(),
                expected: "it must be true or false".to_owned(),
            }),
        }
    }

    fn must_be(
        &self,
        key: &'static str,
        wanted: &Value,
        expected: &str,
    ) -> Result<(), ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value == wanted => Ok(()),
            Some(value) => Err(ConfigError::Value {
                key,
                value: value.to_string(),
                expected: expected.to_owned(),
            }),
        }
    }

    fn must_be_number(
        &self,
        key: &'static str,
        wanted: f64,
        expected: &str,
    ) -> Result<(), ConfigError> {
        let found = self.number_or(key, wanted)?;
        if found == wanted {
            Ok(())
        } else {
            Err(ConfigError::Value {
                key,
                value: found.to_string(),
                expected: expected.to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<ModelConfig, ConfigError> {
        ModelConfig::from_json(value.as_object().unwrap())
    }

    fn qwen2() -> Value {
        json!({
            "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 4, "intermediate_size": 128, "vocab_size": 100,
            "max_position_embeddings": 512, "rope_theta": 1e6, "tie_word_embeddings": true,
            "sliding_window": 32, "use_sliding_window": true, "max_window_layers": 3,
        })
    }

    #[test]
    fn both_key_styles_describe_the_same_model() {
        let old = parse(qwen2()).unwrap();
        let mut new = qwen2();
        let map = new.as_object_mut().unwrap();
        map.remove("rope_theta");
        map.insert(
            "rope_parameters".into(),
            json!({"rope_theta": 1e6, "rope_type": "default"}),
        );
        map.insert(
            "layer_types".into(),
            json!([
                "full_attention",
                "full_attention",
                "full_attention",
                "sliding_attention"
            ]),
        );
        assert_eq!(old, parse(new).unwrap());
        assert_eq!(old.sliding_window, [None, None, None, Some(32)]);
        assert!(old.qkv_bias && !old.o_bias && old.head_dim == 16);
    }

    #[test]
    fn unusable_configs_name_the_key() {
        for (key, value, word) in [
            (
                "architectures",
                json!(["GPT2LMHeadModel"]),
                "GPT2LMHeadModel",
            ),
            ("hidden_act", json!("gelu"), "hidden_act"),
            ("attention_dropout", json!(0.1), "attention_dropout"),
            ("num_key_value_heads", json!(3), "num_key_value_heads"),
            ("vocab_size", json!(0), "vocab_size"),
            ("hidden_size", json!("big"), "hidden_size"),
            ("rope_scaling", json!({"rope_type": "longrope"}), "longrope"),
            (
                "layer_types",
                json!(["chunked_attention", "x", "x", "x"]),
                "layer_types",
            ),
        ] {
            let mut config = qwen2();
            config.as_object_mut().unwrap().insert(key.into(), value);
            let error = parse(config).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let mut config = qwen2();
        config.as_object_mut().unwrap().remove("vocab_size");
        assert!(
            parse(config)
                .unwrap_err()
                .to_string()
                .contains("vocab_size")
        );
    }

    #[test]
    fn truncation_keeps_the_first_layers() {
        let config = parse(qwen2()).unwrap();
        assert_eq!(config.clone().truncated(2).unwrap().sliding_window.len(), 2);
        assert_eq!(config.clone().truncated(0).unwrap(), config);
        assert!(config.truncated(9).is_err());
    }
}
