//! Granite 3 (dense): Llama with multipliers for embedding, scores, branches and logits.

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::description::EmbeddingScale;
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig};

pub(super) const FAMILY: Family = Family {
    name: "Granite",
    class: "GraniteForCausalLM",
    model_type: "granite",
    reads: &[
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
    ],
    describe,
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, FAMILY.name, &Defaults::LLAMA)?;
    let bias = keys.flag("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.mlp_bias = keys.flag("mlp_bias", false)?;
    config.embedding_scale = EmbeddingScale {
        factor: keys.positive_or("embedding_multiplier", 1.0)?,
        rounds: false,
    };
    config.attention_scale = keys.positive_or("attention_multiplier", 1.0)?;
    config.residual_scale = keys.positive_or("residual_multiplier", 1.0)?;
    config.logits_scale = 1.0 / keys.positive_or("logits_scaling", 1.0)?;
    config.rope = config
        .rope_rules(10_000.0)
        .in_all_layers(keys, config.num_layers)?;
    Ok(config)
}
