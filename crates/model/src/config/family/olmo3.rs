//! OLMo 3: OLMo 2 with a window in three of four layers, in which the rotary embedding is not scaled.

use super::Family;
use super::olmo2::olmo;
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig, layers};

pub(super) const FAMILY: Family = Family {
    name: "Olmo3",
    class: "Olmo3ForCausalLM",
    model_type: "olmo3",
    reads: &[],
    describe,
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = olmo(keys, FAMILY.name)?;
    let sliding = layers::sliding(keys, config.num_layers, |layer| {
        !(layer + 1).is_multiple_of(4)
    })?;
    config.sliding_window = layers::windows(&sliding, layers::window(keys, Some(4096))?)?;
    config.rope = config.rope_rules(500_000.0).by_kind(keys, &sliding, None)?;
    Ok(config)
}
