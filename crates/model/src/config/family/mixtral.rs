//! Mixtral (arXiv 2401.04088): Mistral with a mixture of experts in every layer.

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::keys::Keys;
use crate::config::{ConfigError, ExpertNames, Experts, ModelConfig, experts, layers};

pub(super) const FAMILY: Family = Family {
    name: "Mixtral",
    class: "MixtralForCausalLM",
    model_type: "mixtral",
    reads: &experts::KEYS,
    describe,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    max_position: 131_072,
    eps: 1e-5,
    ..Defaults::LLAMA
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, FAMILY.name, &DEFAULTS)?;
    keys.must_be_number(
        "router_jitter_noise",
        0.0,
        "noise on the router's input is not supported; set it to 0.0",
    )?;
    let window = layers::window(keys, None)?;
    let sliding = layers::sliding(keys, config.num_layers, |_| window.is_some())?;
    config.sliding_window = layers::windows(&sliding, window)?;
    config.rope = config
        .rope_rules(1_000_000.0)
        .in_all_layers(keys, config.num_layers)?;
    config.experts = Some(Experts {
        rule: experts::rule(keys, (8, 2), true)?,
        intermediate_size: config.intermediate_size,
        names: ExpertNames::MIXTRAL,
        balance: experts::balance(keys)?,
        sparse: vec![true; config.num_layers],
    });
    Ok(config)
}
