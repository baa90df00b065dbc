//! Gemma 2 (arXiv 2408.00118): norms on both sides of a block, GeGLU, caps on scores and logits, a window in every other
//! layer.

use tandem_tensor::glu::Activation;

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::description::{EmbeddingScale, LayerNorms};
use crate::config::keys::Keys;
use crate::config::{ConfigError, ModelConfig, layers};

pub(super) const FAMILY: Family = Family {
    name: "Gemma2",
    class: "Gemma2ForCausalLM",
    model_type: "gemma2",
    reads: READS,
    describe,
};

/// Both Gemmas.
pub(super) const READS: &[&str] = &[
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope_local_base_freq",
];

/// Both Gemmas.
pub(super) const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    head_dim: Some(256),
    max_position: 8192,
    tied: true,
    activation: ("hidden_activation", Activation::GeluTanh),
    ..Defaults::LLAMA
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = gemma(keys, FAMILY.name, &DEFAULTS)?;
    config.attention_soft_cap = keys.positive_or_none("attn_logit_softcapping", Some(50.0))?;
    config.logits_soft_cap = keys.positive_or_none("final_logit_softcapping", Some(30.0))?;
    let sliding = layers::sliding(keys, config.num_layers, |layer| layer % 2 == 0)?;
    config.sliding_window = layers::windows(&sliding, layers::window(keys, Some(4096))?)?;
    config.rope = config
        .rope_rules(10_000.0)
        .in_all_layers(keys, config.num_layers)?;
    Ok(config)
}

/// What both Gemmas have.
pub(super) fn gemma(
    keys: &Keys<'_>,
    family: &'static str,
    defaults: &Defaults,
) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, family, defaults)?;
    config.norm.adds_one = true;
    config.norm.rounds_last = true;
    config.layer_norms = LayerNorms::BOTH;
    config.attention_scale = keys.positive_or("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    let bias = keys.flag("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.embedding_scale = EmbeddingScale {
        factor: (config.hidden_size as f64).sqrt(),
        rounds: true,
    };
    Ok(config)
}
