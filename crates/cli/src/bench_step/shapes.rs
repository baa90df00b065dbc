//! The models whose steps are timed: published sizes, random weights.

use clap::ValueEnum;
use serde_json::{Map, Value};
use tandem_model::ModelConfig;
use tandem_run::failure::{Failure, Outcome};

/// Which model's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Qwen2-0.5B (arXiv 2407.10671): 24 layers, a large tied vocabulary.
    Qwen2,
    /// SmolLM2-135M (arXiv 2502.02737): 30 thin layers, 9 heads of which 3 have keys.
    Smollm2,
    /// Gemma 2 2B (arXiv 2408.00118): four norms a layer, GeGLU, soft caps, windows.
    Gemma2,
    /// Gemma 2 2B, a quarter as wide, with a quarter of its vocabulary: what is no matrix product weighs most.
    Gemma2Narrow,
    /// Qwen3-30B-A3B (arXiv 2505.09388) with a quarter of its experts, 32, of which a token goes to 8, and a small vocabulary.
    Qwen3Moe,
    /// The same, a quarter as wide, with twice the vocabulary.
    Qwen3MoeNarrow,
    /// Llama 2 7B (arXiv 2307.09288): wide layers, whose products are large enough for any GPU.
    #[value(name = "llama2-7b")]
    Llama2,
}

const QWEN2: &str = r#"{
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
    "num_hidden_layers": 24, "intermediate_size": 4864, "vocab_size": 151936, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true, "initializer_range": 0.02
}"#;

const SMOLLM2: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
    "num_hidden_layers": 30, "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": true, "initializer_range": 0.04
}"#;

const GEMMA2: &str = r#"{
    "architectures": ["Gemma2ForCausalLM"], "hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "num_hidden_layers": 26, "intermediate_size": 9216, "vocab_size": 256000,
    "max_position_embeddings": 8192, "sliding_window": 4096, "query_pre_attn_scalar": 256, "initializer_range": 0.02
}"#;

const GEMMA2_NARROW: &str = r#"{
    "hidden_size": 576, "head_dim": 64, "intermediate_size": 2304, "vocab_size": 64000, "sliding_window": 256,
    "query_pre_attn_scalar": 64
}"#;

const QWEN3_MOE: &str = r#"{
    "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "num_hidden_layers": 48, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 32,
    "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 32000,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "initializer_range": 0.02
}"#;

const QWEN3_MOE_NARROW: &str = r#"{
    "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 1536,
    "moe_intermediate_size": 192, "vocab_size": 64000
}"#;

const LLAMA2: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
    "num_hidden_layers": 32, "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "initializer_range": 0.02
}"#;

impl Shape {
    /// The model, cut to its first `layers` layers.
    pub fn config(self, layers: usize) -> Outcome<ModelConfig> {
        // The model, and what is another in it.
        let texts: &[&str] = match self {
            Self::Qwen2 => &[QWEN2],
            Self::Smollm2 => &[SMOLLM2],
            Self::Gemma2 => &[GEMMA2],
            Self::Gemma2Narrow => &[GEMMA2, GEMMA2_NARROW],
            Self::Qwen3Moe => &[QWEN3_MOE],
            Self::Qwen3MoeNarrow => &[QWEN3_MOE, QWEN3_MOE_NARROW],
            Self::Llama2 => &[LLAMA2],
        };
        let mut json = Map::new();
        for text in texts {
            let keys: Map<String, Value> = serde_json::from_str(text).map_err(Failure::other)?;
            json.extend(keys);
        }
        ModelConfig::from_json(&json)
            .and_then(|config| config.truncated(layers))
            .map_err(Failure::other)
    }
}
