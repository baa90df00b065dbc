//! Mistral (arXiv 2310.06825): Llama with a window in all layers.

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig, layers};

pub(super) const FAMILY: Family = Family {
    name: "Mistral",
    class: "MistralForCausalLM",
    model_type: "mistral",
    reads: &[],
    describe,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    max_position: 131_072,
    ..Defaults::LLAMA
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, FAMILY.name, &DEFAULTS)?;
    let window = layers::window(keys, Some(4096))?;
    let sliding = layers::sliding(keys, config.num_layers, |_| window.is_some())?;
    config.sliding_window = layers::windows(&sliding, window)?;
    config.rope = config
        .rope_rules(10_000.0)
        .in_all_layers(keys, config.num_layers)?;
    Ok(config)
}
