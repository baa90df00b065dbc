//! Phi-3, Phi-3.5 and Phi-4 (arXiv 2404.14219): q, k and v in one tensor, gate and up in another, heads that may be rotated in
//! part, LongRoPE.

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::description::{GATE_UP, QKV};
use crate::config::keys::Keys;
use crate::config::rope::{RopeRules, RopeScaling};
use crate::config::{ConfigError, ModelConfig, layers};

pub(super) const FAMILY: Family = Family {
    name: "Phi3",
    class: "Phi3ForCausalLM",
    model_type: "phi3",
    reads: &[],
    describe,
};

const DEFAULTS: Defaults = Defaults {
    max_position: 4096,
    eps: 1e-5,
    ..Defaults::LLAMA
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, FAMILY.name, &DEFAULTS)?;
    config.qkv = QKV;
    config.gate_up = GATE_UP;
    let window = layers::window(keys, None)?;
    config.sliding_window = vec![window; config.num_layers];
    let rules = config.rope_rules(10_000.0);
    config.rotary_dim = rules.partial(keys, config.head_dim)?;
    let rules = RopeRules {
        rotary_dim: config.rotary_dim,
        is_partial: true,
        has_old_names: true,
        original_max_position: Some(4096.0),
        ..rules
    };
    config.rope = rules.in_all_layers(keys, config.num_layers)?;
    match config
        .rope
        .iter()
        .flatten()
        .next()
        .map(|rope| &rope.scaling)
    {
        None | Some(RopeScaling::Default | RopeScaling::LongRope { .. }) => Ok(config),
        Some(other) => Err(ConfigError::Value {
            key: "rope_type",
            value: format!("{other:?}"),
            expected: "Phi-3 has default and longrope only".to_owned(),
        }),
    }
}
