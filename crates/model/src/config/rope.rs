//! The rotary position embedding's settings, as transformers 4 (`rope_theta`, `rope_scaling`) or 5
//! (`rope_parameters`) writes them.

use serde_json::{Map, Value};

use super::{ConfigError, Keys};

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
    /// When the type is not supported, or a number that it needs is missing.
    pub(super) fn from_json(
        json: &Map<String, Value>,
        max_position_embeddings: usize,
    ) -> Result<Self, ConfigError> {
        let empty = Map::new();
        let object = |key: &str| json.get(key).and_then(Value::as_object);
        let parameters = object("rope_parameters")
            .or_else(|| object("rope_scaling"))
            .unwrap_or(&empty);
        let theta = match parameters.get("rope_theta") {
            Some(_) => Keys(parameters).number_or("rope_theta", 10_000.0)?,
            None => Keys(json).number_or("rope_theta", 10_000.0)?,
        };
        let kind = parameters
            .get("rope_type")
            .or_else(|| parameters.get("type"))
            .map_or(Some("default"), Value::as_str);
        let required = |key: &'static str| -> Result<f64, ConfigError> {
            parameters
                .get(key)
                .and_then(Value::as_f64)
                .ok_or(ConfigError::Missing { key })
        };
        let scaling = match kind {
            Some("default") => RopeScaling::Default,
            Some("linear") => RopeScaling::Linear {
                factor: required("factor")?,
            },
            Some("llama3") => RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_max_position: required("original_max_position_embeddings")?,
            },
            Some("yarn") => yarn(parameters, max_position_embeddings)?,
            other => {
                return Err(ConfigError::Value {
                    key: "rope_type",
                    value: other.unwrap_or("not a string").to_owned(),
                    expected: "supported are default, linear, llama3 and yarn".to_owned(),
                });
            }
        };
        Ok(Self { theta, scaling })
    }
}

fn yarn(
    parameters: &Map<String, Value>,
    max_position_embeddings: usize,
) -> Result<RopeScaling, ConfigError> {
    let keys = Keys(parameters);
    let max_position = max_position_embeddings as f64;
    let original_max_position = keys.number_or("original_max_position_embeddings", max_position)?;
    let factor = keys.number_or("factor", max_position / original_max_position)?;
    let attention_factor = match parameters.get("attention_factor").and_then(Value::as_f64) {
        Some(given) => given,
        None => {
            let mscale = keys.number_or("mscale", 0.0)?;
            let mscale_all_dim = keys.number_or("mscale_all_dim", 0.0)?;
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
        beta_fast: keys.number_or("beta_fast", 32.0)?,
        beta_slow: keys.number_or("beta_slow", 1.0)?,
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
