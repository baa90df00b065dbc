//! OLMo 2 (arXiv 2501.00656): norms after the blocks instead of before them, q and k normalised over all heads together.

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::description::LayerNorms;
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig, QkNorm};

pub(super) const FAMILY: Family = Family {
    name: "Olmo2",
    class: "Olmo2ForCausalLM",
    model_type: "olmo2",
    reads: &[],
    describe,
};

const DEFAULTS: Defaults = Defaults {
    eps: 1e-5,
    ..Defaults::LLAMA
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = olmo(keys, FAMILY.name)?;
    config.rope = config
        .rope_rules(10_000.0)
        .in_all_layers(keys, config.num_layers)?;
    Ok(config)
}

/// What OLMo 2 and 3 have.
pub(super) fn olmo(keys: &Keys<'_>, family: &'static str) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, family, &DEFAULTS)?;
    config.norm.rounds_last = true;
    config.layer_norms = LayerNorms::AFTER;
    config.qk_norm = Some(QkNorm::AcrossHeads);
    let bias = keys.flag("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    Ok(config)
}
