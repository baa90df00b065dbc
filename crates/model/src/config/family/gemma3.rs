//! The text models of Gemma 3 (arXiv 2503.19786): Gemma 2 with norms of q and k instead of caps, and another rotary embedding
//! in the layers that slide, which are five of six.

use super::Family;
use super::gemma2::{self, gemma};
use crate::config::base::Defaults;
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig, QkNorm, layers};

pub(super) const FAMILY: Family = Family {
    name: "Gemma3",
    class: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    reads: gemma2::READS,
    describe,
};

/// The text part of a multimodal config says only what is not as in transformers' class, sizes included.
const DEFAULTS: Defaults = Defaults {
    heads: Some(8),
    vocab_size: Some(262_208),
    max_position: 131_072,
    ..gemma2::DEFAULTS
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = gemma(keys, FAMILY.name, &DEFAULTS)?;
    config.qk_norm = Some(QkNorm::PerHead);
    // transformers reads `attn_logit_softcapping` and does not use it.
    config.logits_soft_cap = keys.positive_or_none("final_logit_softcapping", None)?;
    let pattern = keys.size_or("sliding_window_pattern", 6)?;
    let sliding = layers::sliding(keys, config.num_layers, |layer| {
        !(layer + 1).is_multiple_of(pattern)
    })?;
    config.sliding_window = layers::windows(&sliding, layers::window(keys, Some(4096))?)?;
    let local_theta = keys.positive_or("rope_local_base_freq", 10_000.0)?;
    let rules = config.rope_rules(1_000_000.0);
    config.rope = rules.by_kind(keys, &sliding, Some(local_theta))?;
    Ok(config)
}
