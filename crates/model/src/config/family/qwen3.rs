//! Qwen3 (arXiv 2505.09388): q and k are normalised per head.

use super::Family;
use super::qwen2::sliding_window;
use crate::config::base::{Defaults, base};
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig, QkNorm};

pub(super) const FAMILY: Family = Family {
    name: "Qwen3",
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    reads: &[],
    describe,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(32),
    head_dim: Some(128),
    max_position: 32_768,
    ..Defaults::LLAMA
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, FAMILY.name, &DEFAULTS)?;
    let bias = keys.flag("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.qk_norm = Some(QkNorm::PerHead);
    config.sliding_window = sliding_window(keys, config.num_layers)?;
    config.rope = config
        .rope_rules(10_000.0)
        .in_all_layers(keys, config.num_layers)?;
    Ok(config)
}
