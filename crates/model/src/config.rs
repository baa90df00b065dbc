//! A Hugging Face `config.json`, in the key style of transformers 4 or 5, as one validated description.

mod base;
mod description;
mod experts;
mod family;
mod keys;
mod layers;
mod rope;
mod unsupported;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tandem_files::read_small;
use tandem_tensor::glu::Activation;
use tandem_tensor::rms_norm::NormSpec;

pub use description::{Axis, EmbeddingScale, ExpertNames, Experts, LayerNorms, Projection, QkNorm};
pub use rope::{RopeConfig, RopeScaling};

/// A description of a model has a few kilobytes; what is larger than this is something else.
const MAX_BYTES: u64 = 16 << 20;

/// A thousand times the parameters of the largest models that are published: sums and products of sizes below this, and
/// their bytes, fit into 64 bits.
const MAX_PARAMETERS: u128 = 1 << 50;

/// Everything about a model that its computation depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family's name, such as `Llama`: for people, and for telling runs apart. No computation depends on it.
    pub family: &'static str,
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
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// What every RMSNorm computes.
    pub norm: NormSpec,
    /// Where in a layer there are norms.
    pub layer_norms: LayerNorms,
    /// The projections whose outputs are q, k and v, in this order.
    pub qkv: &'static [Projection],
    /// They have a bias.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub o_bias: bool,
    /// How q and k are normalised, if they are.
    pub qk_norm: Option<QkNorm>,
    /// Multiplies the scores before the softmax.
    pub attention_scale: f64,
    /// Scores become `cap * tanh(score / cap)`.
    pub attention_soft_cap: Option<f64>,
    /// Per layer: a query sees that many keys at most, itself included.
    pub sliding_window: Vec<Option<usize>>,
    /// The numbers of a head that are rotated; the others pass.
    pub rotary_dim: usize,
    /// Per layer: the position embedding, where the layer has one.
    pub rope: Vec<Option<RopeConfig>>,
    /// The projections whose outputs are the MLP's gate and up branches, in this order.
    pub gate_up: &'static [Projection],
    /// What the gate goes through.
    pub activation: Activation,
    /// The MLP's projections have a bias.
    pub mlp_bias: bool,
    /// The mixture of experts that some layers have in the place of the MLP.
    pub experts: Option<Experts>,
    /// Multiplies the embedding's vectors.
    pub embedding_scale: EmbeddingScale,
    /// Multiplies what a block adds to the residual stream.
    pub residual_scale: f64,
    /// Multiplies the logits.
    pub logits_scale: f64,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logits_soft_cap: Option<f64>,
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
        "config.json: architectures: {found:?} is not supported; supported are {supported}, also as the text part of a larger model"
    )]
    Architecture {
        /// What the file says.
        found: String,
        /// What it may say.
        supported: String,
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
        let config = family::describe(json)?;
        let parameters = config.parameters();
        if parameters > MAX_PARAMETERS {
            return Err(ConfigError::TooLarge { parameters });
        }
        Ok(config)
    }

    /// The config of a multimodal model's text part, as one would write it for that part alone; `None` where `json` is that of a
    /// text model.
    ///
    /// # Errors
    /// [`ConfigError`] names a key of the wrong type.
    pub fn text_part(json: &Map<String, Value>) -> Result<Option<Map<String, Value>>, ConfigError> {
        family::text_part(json)
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
        let norms = self.layer_norms.names().count() as u128 * hidden
            + match self.qk_norm {
                None => 0,
                Some(QkNorm::PerHead) => 2 * dim,
                Some(QkNorm::AcrossHeads) => q + kv,
            };
        let layer = hidden * (2 * q + 2 * kv) + biases + norms;
        // A mixture has no biases: what is counted for them is a little too much.
        let (sparse, of_experts) = match &self.experts {
            None => (0, 0),
            Some(experts) => {
                let (count, inner) = (experts.rule.experts as u128, experts.intermediate_size);
                let sparse = experts
                    .sparse
                    .iter()
                    .filter(|is_sparse| **is_sparse)
                    .count();
                (sparse as u128, count * hidden * (3 * inner as u128 + 1))
            }
        };
        let mlps = (layers - sparse) * 3 * hidden * inner + sparse * of_experts;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        layers * layer + mlps + tables * vocab * hidden + hidden
    }

    /// Features that run over an axis of the whole model.
    pub fn width(&self, axis: Axis) -> usize {
        match axis {
            Axis::QHeads => self.num_heads * self.head_dim,
            Axis::KvHeads => self.num_kv_heads * self.head_dim,
            Axis::Intermediate => self.intermediate_size,
            Axis::ExpertIntermediate => match &self.experts {
                Some(experts) => experts.intermediate_size,
                None => 0,
            },
            Axis::Vocab => self.vocab_size,
        }
    }

    /// The mixture of experts of a layer, where it has one.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        let experts = self.experts.as_ref();
        experts.filter(|experts| experts.sparse.get(layer) == Some(&true))
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
            self.rope.truncate(num_layers);
            if let Some(experts) = &mut self.experts {
                experts.sparse.truncate(num_layers);
            }
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
            ("hidden_act", json!("relu"), "hidden_act"),
            ("attention_dropout", json!(0.1), "attention_dropout"),
            ("num_key_value_heads", json!(3), "num_key_value_heads"),
            ("vocab_size", json!(0), "vocab_size"),
            ("hidden_size", json!("big"), "hidden_size"),
            (
                "rope_scaling",
                json!({"rope_type": "proportional"}),
                "proportional",
            ),
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
        let two = config.clone().truncated(2).unwrap();
        assert_eq!((two.sliding_window.len(), two.rope.len()), (2, 2));
        assert_eq!(config.clone().truncated(0).unwrap(), config);
        assert!(config.truncated(9).is_err());
    }
}
