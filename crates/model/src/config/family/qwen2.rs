//! Qwen2 and Qwen2.5 (arXiv 2407.10671): q, k and v with biases, windows from some layer on where they are used at all.

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig, layers};

pub(super) const FAMILY: Family = Family {
    name: "Qwen2",
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    reads: &[],
    describe,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(32),
    max_position: 32_768,
    ..Defaults::LLAMA
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, FAMILY.name, &DEFAULTS)?;
    config.qkv_bias = true;
    config.sliding_window = sliding_window(keys, config.num_layers)?;
    config.rope = config
        .rope_rules(10_000.0)
        .in_all_layers(keys, config.num_layers)?;
    Ok(config)
}

/// As all Qwens have it.
pub(super) fn sliding_window(
    keys: &Keys<'_>,
    num_layers: usize,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let uses_window = keys.flag("use_sliding_window", false)?;
    let window = layers::window(keys, Some(4096))?.filter(|_| uses_window);
    let first = keys.count_or("max_window_layers", 28)?;
    let sliding = layers::sliding(keys, num_layers, |layer| {
        window.is_some() && layer as u64 >= first
    })?;
    layers::windows(&sliding, window)
}
