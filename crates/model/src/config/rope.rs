//! The rotary position embedding's settings, as transformers 4 (`rope_theta`, `rope_scaling`) or 5
//! (`rope_parameters`) writes them.

use serde_json::{Map, Value};

use super::{ConfigError, Keys};

/// What all supported families take without `rope_theta`.
const DEFAULT_THETA: f64 = 10_000.0;

/// Base frequency and scaling of the rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How positions beyond the pre-training length are reached.
    pub scaling: RopeScaling,
}

/// Ways of stretching the rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Every frequency divided by `factor` (arXiv 2306.15595).
    Linear {
        /// How much longer the context is.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// How much longer the context is.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position: f64,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// How much longer the context is.
        factor: f64,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Context length of pre-training.
        original_max_position: f64,
        /// Round the ramp's ends to whole dimensions.
        truncate: bool,
    },
}

impl RopeConfig {
    /// # Errors
    /// When the type is not supported, or a number that it needs is missing or impossible.
    pub(super) fn from_json(
        json: &Map<String, Value>,
        max_position_embeddings: usize,
    ) -> Result<Self, ConfigError> {
        let top = Keys(json);
        let empty = Map::new();
        let parameters = top.object("rope_parameters")?;
        // transformers takes the older name where both are there, and nothing at all of the newer one.
        let older = top.object("rope_scaling")?.filter(|map| !map.is_empty());
        if let (Some(older), Some(newer)) = (older, parameters) {
            refuse_two_thetas(&top, older, newer)?;
        }
        let parameters = older.or(parameters).unwrap_or(&empty);
        let keys = Keys(parameters);
        if let Some((name, value)) = parameters.iter().find(|(_, value)| value.is_object()) {
            return Err(ConfigError::Value {
                key: "rope_parameters",
                value: format!("{{{name:?}: {value}}}"),
                expected: "one embedding for all layers is supported".to_owned(),
            });
        }
        keys.must_be_number(
            "partial_rotary_factor",
            1.0,
            "partial rotary embedding is not supported",
        )?;
        let theta = match keys.get("rope_theta") {
            Some(_) => keys.positive("rope_theta")?,
            None => top.positive_or("rope_theta", DEFAULT_THETA)?,
        };
        // What transformers, too, finds outside of the parameters.
        let original_max_position = match top.get("original_max_position_embeddings") {
            Some(_) => top.positive("original_max_position_embeddings")?,
            None => keys.positive_or(
                "original_max_position_embeddings",
                max_position_embeddings as f64,
            )?,
        };
        let kind = match keys.text("rope_type")? {
            Some(kind) => kind,
            None => keys.text("type")?.unwrap_or("default"),
        };
        let scaling = match kind {
            "default" => RopeScaling::Default,
            // It begins to differ beyond max_position_embeddings, where no sequence is trained.
            "dynamic" => {
                keys.positive("factor")?;
                RopeScaling::Default
            }
            "linear" => RopeScaling::Linear {
                factor: keys.positive("factor")?,
            },
            "llama3" => {
                let low_freq_factor = keys.positive("low_freq_factor")?;
                let high_freq_factor = keys.positive("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    return Err(ConfigError::Value {
                        key: "high_freq_factor",
                        value: high_freq_factor.to_string(),
                        expected: format!("it must be above low_freq_factor = {low_freq_factor}"),
                    });
                }
                RopeScaling::Llama3 {
                    factor: keys.positive("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position,
                }
            }
            "yarn" => yarn(&keys, theta, max_position_embeddings, original_max_position)?,
            other => {
                return Err(ConfigError::Value {
                    key: "rope_type",
                    value: other.to_owned(),
                    expected: "supported are default, linear, dynamic, llama3 and yarn".to_owned(),
                });
            }
        };
        Ok(Self { theta, scaling })
    }
}

/// Refuses a `rope_scaling` that would silently replace the base frequency beside it.
fn refuse_two_thetas(
    top: &Keys<'_>,
    older: &Map<String, Value>,
    newer: &Map<String, Value>,
) -> Result<(), ConfigError> {
    let given = Keys(newer).number_or("rope_theta", DEFAULT_THETA)?;
    if Keys(older).get("rope_theta").is_some()
        || top.get("rope_theta").is_some()
        || given == DEFAULT_THETA
    {
        return Ok(());
    }
    Err(ConfigError::Value {
        key: "rope_scaling",
        value: "without rope_theta".to_owned(),
        expected: format!(
            "it replaces rope_parameters, whose rope_theta is {given}; write that into rope_scaling, or take one of the \
             two out"
        ),
    })
}

fn yarn(
    keys: &Keys<'_>,
    theta: f64,
    max_position_embeddings: usize,
    original_max_position: f64,
) -> Result<RopeScaling, ConfigError> {
    if theta <= 1.0 {
        return Err(ConfigError::Value {
            key: "rope_theta",
            value: theta.to_string(),
            expected: "yarn needs a base above 1".to_owned(),
        });
    }
    let max_position = max_position_embeddings as f64;
    let factor = keys.positive_or("factor", max_position / original_max_position)?;
    let attention_factor = match keys.get("attention_factor") {
        Some(_) => keys.positive("attention_factor")?,
        None => {
            let mscale = keys.positive_unless_0("mscale", 0.0)?;
            let mscale_all_dim = keys.positive_unless_0("mscale_all_dim", 0.0)?;
            if mscale != 0.0 && mscale_all_dim != 0.0 {
                yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
            } else {
                yarn_mscale(factor, 1.0)
            }
        }
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: keys.positive_unless_0("beta_fast", 32.0)?,
        beta_slow: keys.positive_unless_0("beta_slow", 1.0)?,
        original_max_position,
        truncate: keys.flag("truncate", true)?,
    })
}

/// The temperature of YaRN's section 3.4, as a factor on cos and sin.
fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * mscale * factor.ln() + 1.0
    }
}
