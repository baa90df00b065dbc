//! What every family's config says in the same way: sizes, norms before the blocks, separate projections, SwiGLU. A family
//! begins with this and changes what it has otherwise.

use tandem_tensor::glu::Activation;
use tandem_tensor::rms_norm::NormSpec;

use super::description::{EmbeddingScale, GATE_AND_UP, LayerNorms, Q_K_V};
use super::keys::{Keys, at_most, wrong};
use super::rope::RopeRules;
use super::{ConfigError, ModelConfig};

/// Far beyond the deepest models that are published, and no list of so many layers' parameters is large.
const MAX_LAYERS: usize = 10_000;

/// Likewise of the widest: each layer has a list of its heads.
const MAX_HEADS: usize = 4096;

/// What a family takes for keys that a config does not have, as its class in transformers 5.24 does
/// (`models/*/configuration_*.py`). Sizes that the tensors of the weights have are not made up, unless published configs
/// of the family leave them out.
pub(super) struct Defaults {
    /// `num_attention_heads`, where published configs lack it.
    pub(super) heads: Option<usize>,
    /// `num_key_value_heads`; `None` is as many as there are query heads, which is what `null` means in every family.
    pub(super) kv_heads: Option<usize>,
    /// `head_dim`; `None` is hidden_size / num_attention_heads.
    pub(super) head_dim: Option<usize>,
    /// `vocab_size`, where published configs lack it.
    pub(super) vocab_size: Option<usize>,
    /// `max_position_embeddings`.
    pub(super) max_position: usize,
    /// `rms_norm_eps`.
    pub(super) eps: f64,
    /// `tie_word_embeddings`.
    pub(super) tied: bool,
    /// The key of the MLP's activation, and what it is without one.
    pub(super) activation: (&'static str, Activation),
}

impl Defaults {
    /// Those of Llama.
    pub(super) const LLAMA: Self = Self {
        heads: None,
        kv_heads: None,
        head_dim: None,
        vocab_size: None,
        max_position: 2048,
        eps: 1e-6,
        tied: false,
        activation: ("hidden_act", Activation::Silu),
    };
}

/// The description of a model like Llama, without windows, rotary embedding and biases.
pub(super) fn base(
    keys: &Keys<'_>,
    family: &'static str,
    defaults: &Defaults,
) -> Result<ModelConfig, ConfigError> {
    let hidden_size = keys.size("hidden_size")?;
    let num_heads = match defaults.heads {
        Some(heads) => keys.size_or("num_attention_heads", heads)?,
        None => keys.size("num_attention_heads")?,
    };
    let num_kv_heads = kv_heads(keys, family, defaults, num_heads)?;
    let head_dim = head_dim(keys, defaults, hidden_size, num_heads)?;
    let num_layers = keys.size("num_hidden_layers")?;
    at_most(MAX_LAYERS, "num_hidden_layers", num_layers)?;
    at_most(MAX_HEADS, "num_attention_heads", num_heads)?;
    // Also where the family has no use for them.
    keys.list("layer_types")?;
    keys.flag("use_sliding_window", false)?;
    keys.any_size_or("sliding_window", 1)?;
    for key in ["attention_bias", "mlp_bias"] {
        keys.flag(key, false)?;
    }
    keys.must_be_number(
        "attention_dropout",
        0.0,
        "dropout in attention is not supported; set it to 0.0",
    )?;
    Ok(ModelConfig {
        family,
        hidden_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        intermediate_size: keys.size("intermediate_size")?,
        vocab_size: match defaults.vocab_size {
            Some(size) => keys.size_or("vocab_size", size)?,
            None => keys.size("vocab_size")?,
        },
        max_position_embeddings: keys
            .any_size_or("max_position_embeddings", defaults.max_position)?,
        initializer_range: keys.initializer_range()?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", defaults.tied)?,
        norm: NormSpec::new(keys.positive_or("rms_norm_eps", defaults.eps)?),
        layer_norms: LayerNorms::BEFORE,
        qkv: Q_K_V,
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_soft_cap: None,
        sliding_window: vec![None; num_layers],
        rotary_dim: head_dim,
        rope: Vec::new(),
        gate_up: GATE_AND_UP,
        activation: activation(keys, defaults)?,
        mlp_bias: false,
        experts: None,
        embedding_scale: EmbeddingScale::ONE,
        residual_scale: 1.0,
        logits_scale: 1.0,
        logits_soft_cap: None,
    })
}

impl ModelConfig {
    /// For reading how this model's positions are embedded: the family's base, and the sizes that are read already.
    pub(super) fn rope_rules(&self, theta: f64) -> RopeRules {
        RopeRules {
            theta,
            max_position: self.max_position_embeddings,
            original_max_position: None,
            rotary_dim: self.rotary_dim,
            is_partial: false,
            has_old_names: false,
        }
    }
}

fn kv_heads(
    keys: &Keys<'_>,
    family: &str,
    defaults: &Defaults,
    num_heads: usize,
) -> Result<usize, ConfigError> {
    let key = "num_key_value_heads";
    let given = keys.0.get(key);
    let count = match given {
        None => defaults.kv_heads.unwrap_or(num_heads),
        Some(_) => keys.size_or(key, num_heads)?,
    };
    if num_heads.is_multiple_of(count) {
        return Ok(count);
    }
    Err(ConfigError::Value {
        key,
        value: match given {
            None => format!("absent, which means {count} for {family}"),
            Some(_) => count.to_string(),
        },
        expected: format!("it must divide num_attention_heads = {num_heads}"),
    })
}

fn head_dim(
    keys: &Keys<'_>,
    defaults: &Defaults,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, ConfigError> {
    let head_dim = match (keys.size_or("head_dim", 0)?, defaults.head_dim) {
        (0, Some(of_family)) => of_family,
        (0, None) if !hidden_size.is_multiple_of(num_heads) => {
            return Err(ConfigError::Value {
                key: "hidden_size",
                value: hidden_size.to_string(),
                expected: format!(
                    "without head_dim, num_attention_heads = {num_heads} must divide it"
                ),
            });
        }
        (0, None) => hidden_size / num_heads,
        (given, _) => given,
    };
    if head_dim.is_multiple_of(2) {
        return Ok(head_dim);
    }
    Err(ConfigError::Value {
        key: "head_dim",
        value: head_dim.to_string(),
        expected: "rotary embedding needs an even number".to_owned(),
    })
}

/// By transformers' names, of which several are of one function.
fn activation(keys: &Keys<'_>, defaults: &Defaults) -> Result<Activation, ConfigError> {
    let (key, default) = defaults.activation;
    match keys.text(key)? {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some(
            "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_new" | "gelu_fast" | "gelu_accurate",
        ) => Ok(Activation::GeluTanh),
        Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
        Some(other) => Err(wrong(
            key,
            &other.into(),
            "supported are silu, gelu_pytorch_tanh and gelu",
        )),
    }
}
