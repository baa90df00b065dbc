//! Qwen3-MoE (arXiv 2505.09388): Qwen3 with a mixture of experts in most layers.

use super::Family;
use crate::config::base::{Defaults, base};
use crate::config::keys::{Keys, wrong};
use crate::config::{ConfigError, ExpertNames, Experts, ModelConfig, QkNorm, experts, layers};

pub(super) const FAMILY: Family = Family {
    name: "Qwen3Moe",
    class: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    reads: &experts::KEYS,
    describe,
};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    max_position: 32_768,
    ..Defaults::LLAMA
};

fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let mut config = base(keys, FAMILY.name, &DEFAULTS)?;
    let bias = keys.flag("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.qk_norm = Some(QkNorm::PerHead);
    // Unlike in Qwen3, all layers slide where any does.
    let uses_window = keys.flag("use_sliding_window", false)?;
    let window = layers::window(keys, Some(4096))?.filter(|_| uses_window);
    config.sliding_window = vec![window; config.num_layers];
    config.rope = config
        .rope_rules(10_000.0)
        .in_all_layers(keys, config.num_layers)?;
    let normalise = keys.flag("norm_topk_prob", false)?;
    config.experts = Some(Experts {
        rule: experts::rule(keys, (128, 8), normalise)?,
        intermediate_size: keys.size_or("moe_intermediate_size", 768)?,
        names: ExpertNames::LIKE_AN_MLP,
        balance: experts::balance(keys)?,
        sparse: sparse(keys, config.num_layers)?,
    });
    Ok(config)
}

/// Every `decoder_sparse_step`-th layer, but for those that are named.
fn sparse(keys: &Keys<'_>, num_layers: usize) -> Result<Vec<bool>, ConfigError> {
    let step = keys.size_or("decoder_sparse_step", 1)?;
    let key = "mlp_only_layers";
    let mut sparse: Vec<bool> = (1..=num_layers).map(|n| n.is_multiple_of(step)).collect();
    for layer in keys.list(key)?.unwrap_or(&[]) {
        let index = layer.as_u64().and_then(|index| usize::try_from(index).ok());
        let Some(index) = index else {
            return Err(wrong(key, layer, "it must be a list of layers, from 0"));
        };
        // A model that is cut keeps the list of the whole one.
        if let Some(is_sparse) = sparse.get_mut(index) {
            *is_sparse = false;
        }
    }
    Ok(sparse)
}
