//! A Hugging Face `config.json`, in the key style of transformers 4 or 5, as one validated description.

mod family;
mod keys;
mod rope;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tandem_files::read_small;

use family::Defaults;
use keys::Keys;
pub use rope::{RopeConfig, RopeScaling};

/// A description of a model has a few kilobytes; what is larger than this is something else.
const MAX_BYTES: u64 = 16 << 20;

/// Far beyond the deepest models that are published, and no list of so many layers' parameters is large.
const MAX_LAYERS: usize = 10_000;

/// A thousand times the parameters of the largest models that are published: sums and products of sizes below this, and
/// their bytes, fit into 64 bits.
const MAX_PARAMETERS: u128 = 1 << 50;

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
    /// Sizes that no machine holds.
    #[error(
        "config.json: its sizes make a model of {parameters} parameters, which no machine holds"
    )]
    TooLarge {
        /// How many.
        parameters: u128,
    },
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and what is wrong with it.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let text = read_small(&path, MAX_BYTES).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        let value: Value = serde_json::from_slice(&text).map_err(|error| ConfigError::NotJson {
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
        let architecture = family::architecture(json)?;
        let Defaults {
            kv_heads,
            max_position,
            window,
            head_dim,
        } = Defaults::of(architecture);
        let hidden_size = keys.size("hidden_size")?;
        let num_heads = keys.size("num_attention_heads")?;
        let num_kv_heads = match json.get("num_key_value_heads") {
            None => kv_heads.unwrap_or(num_heads),
            Some(_) => keys.size_or("num_key_value_heads", num_heads)?,
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(ConfigError::Value {
                key: "num_key_value_heads",
                value: match json.get("num_key_value_heads") {
                    None => format!("absent, which means {num_kv_heads} for {architecture:?}"),
                    Some(_) => num_kv_heads.to_string(),
                },
                expected: format!("it must divide num_attention_heads = {num_heads}"),
            });
        }
        let head_dim = match (keys.size_or("head_dim", 0)?, head_dim) {
            (0, Some(of_family)) => of_family,
            (0, None) if !hidden_size.is_multiple_of(num_heads) => {
                return Err(ConfigError::Value {
                    key: "hidden_size",
                    value: hidden_size.to_string(),
                    expected: format!(
                        "without head_dim, num_attention_heads = {num_heads} must divide it"
                    ),
                });
            }
            (0, None) => hidden_size / num_heads,
            (given, _) => given,
        };
        if !head_dim.is_multiple_of(2) {
            return Err(ConfigError::Value {
                key: "head_dim",
                value: head_dim.to_string(),
                expected: "rotary embedding needs an even number".to_owned(),
            });
        }
        let num_layers = keys.size("num_hidden_layers")?;
        if num_layers > MAX_LAYERS {
            return Err(ConfigError::Value {
                key: "num_hidden_layers",
                value: num_layers.to_string(),
                expected: format!("more than {MAX_LAYERS} are not supported"),
            });
        }
        keys.must_be(
            "hidden_act",
            // Two names of one function.
            &["silu", "swish"],
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
        let mlp_bias = keys.flag("mlp_bias", false)?;
        let (qkv_bias, o_bias) = match architecture {
            Architecture::Qwen2 => (true, false),
            Architecture::Mistral => (false, false),
            Architecture::Llama | Architecture::Qwen3 => (attention_bias, attention_bias),
        };
        let max_position_embeddings = keys.any_size_or("max_position_embeddings", max_position)?;
        let config = Self {
            architecture,
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: keys.size("intermediate_size")?,
            vocab_size: keys.size("vocab_size")?,
            max_position_embeddings,
            rms_norm_eps: keys.positive_or("rms_norm_eps", 1e-6)?,
            initializer_range: keys.initializer_range()?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            qkv_bias,
            o_bias,
            mlp_bias: architecture == Architecture::Llama && mlp_bias,
            qk_norm: architecture == Architecture::Qwen3,
            sliding_window: family::sliding_windows(&keys, architecture, window, num_layers)?,
            rope: RopeConfig::from_json(json, max_position_embeddings)?,
        };
        let parameters = config.parameters();
        if parameters > MAX_PARAMETERS {
            return Err(ConfigError::TooLarge { parameters });
        }
        Ok(config)
    }

    /// Parameters of the whole model, computed without making its tree. No size of a config can make it overflow.
    fn parameters(&self) -> u128 {
        let [hidden, heads, kv_heads, dim, inner, vocab, layers] = [
            self.hidden_size,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.intermediate_size,
            self.vocab_size,
            self.num_layers,
        ]
        .map(|size| size as u128);
        let (q, kv) = (heads * dim, kv_heads * dim);
        let biases = if self.qkv_bias { q + 2 * kv } else { 0 }
            + if self.o_bias { hidden } else { 0 }
            + if self.mlp_bias { 2 * inner + hidden } else { 0 };
        let norms = 2 * hidden + if self.qk_norm { 2 * dim } else { 0 };
        let layer = hidden * (2 * q + 2 * kv + 3 * inner) + biases + norms;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        layers * layer + tables * vocab * hidden + hidden
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
