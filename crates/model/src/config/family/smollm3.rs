//! SmolLM3: Llama in which every fourth layer has no rotary embedding.

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig, layers};

pub(super) const FAMILY: Family = Family {
    name: "SmolLM3",
    class: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    reads: &["no_rope_layers"],
    describe,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    max_position: 32_768,
    tied: true,
    ..Defaults::LLAMA
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, FAMILY.name, &DEFAULTS)?;
    let bias = keys.flag("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.mlp_bias = keys.flag("mlp_bias", false)?;
    let has_rope = has_rope(keys, config.num_layers)?;
    let uses_window = keys.flag("use_sliding_window", false)?;
    let window = layers::window(keys, None)?;
    // Without a list of kinds, the layers without rotary embedding are those that slide.
    let sliding = layers::sliding(keys, config.num_layers, |layer| {
        uses_window && window.is_some() && !has_rope[layer]
    })?;
    config.sliding_window = layers::windows(&sliding, window)?;
    let rope = config
        .rope_rules(2_000_000.0)
        .in_all_layers(keys, config.num_layers)?;
    let with = rope.into_iter().zip(has_rope);
    config.rope = with.map(|(rope, has)| rope.filter(|_| has)).collect();
    Ok(config)
}

/// `no_rope_layers` says 1 of a layer that has it.
fn has_rope(keys: &Keys<'_>, num_layers: usize) -> Result<Vec<bool>, ConfigError> {
    let key = "no_rope_layers";
    let interval = keys.size_or("no_rope_layer_interval", 4)?;
    let Some(list) = keys.list(key)? else {
        let has_rope = |layer: usize| !(layer + 1).is_multiple_of(interval);
        return Ok((0..num_layers).map(has_rope).collect());
    };
    let flags: Option<Vec<bool>> = list
        .iter()
        .take(num_layers)
        .map(|flag| {
            flag.as_u64()
                .filter(|flag| *flag <= 1)
                .map(|flag| flag == 1)
        })
        .collect();
    match flags {
        Some(flags) if flags.len() == num_layers => Ok(flags),
        _ => Err(ConfigError::Value {
            key,
            value: format!("a list of {}", list.len()),
            expected: format!("it must have a 0 or 1 for each of {num_layers} layers"),
        }),
    }
}
