//! Llama (arXiv 2302.13971), and all that calls itself so: SmolLM2, TinyLlama, Yi.

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig};

pub(super) const FAMILY: Family = Family {
    name: "Llama",
    class: "LlamaForCausalLM",
    model_type: "llama",
    reads: &[],
    describe,
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, FAMILY.name, &Defaults::LLAMA)?;
    let bias = keys.flag("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.mlp_bias = keys.flag("mlp_bias", false)?;
    config.rope = config
        .rope_rules(10_000.0)
        .in_all_layers(keys, config.num_layers)?;
    Ok(config)
}
