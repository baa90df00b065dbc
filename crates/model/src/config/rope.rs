//! The rotary position embedding's settings, as transformers 4 (`rope_theta`, `rope_scaling`) or 5
//! (`rope_parameters`) writes them.

use serde_json::{Map, Value};

use super::ConfigError;
use super::keys::Keys;

/// The kinds of layers, as `rope_parameters` calls them.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

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
    /// LongRoPE (arXiv 2402.13753): every frequency divided by a factor of its own.
    LongRope {
        /// The factors for rows up to `original_max_position`.
        short: Vec<f64>,
        /// The factors for longer rows.
        long: Vec<f64>,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Context length of pre-training.
        original_max_position: f64,
    },
}

/// How a family's config is to be read.
#[derive(Debug, Clone)]
pub(super) struct RopeRules {
    /// The base where none is given.
    pub(super) theta: f64,
    /// `max_position_embeddings`.
    pub(super) max_position: usize,
    /// `original_max_position_embeddings` where none is given; `None` is `max_position`.
    pub(super) original_max_position: Option<f64>,
    /// Numbers of a head that are rotated.
    pub(super) rotary_dim: usize,
    /// The family reads `partial_rotary_factor`: `rotary_dim` is what it makes of a head.
    pub(super) is_partial: bool,
    /// `su` and `yarn` are older names of `longrope`.
    pub(super) has_old_names: bool,
}

impl RopeRules {
    /// One embedding for all layers.
    ///
    /// # Errors
    /// When the type is not supported, or a number that it needs is missing or impossible.
    pub(super) fn in_all_layers(
        &self,
        top: &Keys<'_>,
        num_layers: usize,
    ) -> Result<Vec<Option<RopeConfig>>, ConfigError> {
        let empty = Map::new();
        let parameters = top.object("rope_parameters")?;
        // transformers takes the older name where both are there, and nothing at all of the newer one.
        let older = top.object("rope_scaling")?.filter(|map| !map.is_empty());
        if let (Some(older), Some(newer)) = (older, parameters) {
            self.refuse_two_thetas(top, older, newer)?;
        }
        let parameters = older.or(parameters).unwrap_or(&empty);
        let theta = top.positive_or("rope_theta", self.theta)?;
        Ok(vec![Some(self.read(top, parameters, theta)?); num_layers])
    }

    /// An embedding for the layers that see all and another for those that slide. Older configs scale that of the former only;
    /// the latter's base is then `local_theta`, or without that the same.
    ///
    /// # Errors
    /// As [`Self::in_all_layers`].
    pub(super) fn by_kind(
        &self,
        top: &Keys<'_>,
        sliding: &[bool],
        local_theta: Option<f64>,
    ) -> Result<Vec<Option<RopeConfig>>, ConfigError> {
        let empty = Map::new();
        let parameters = top.object("rope_parameters")?.unwrap_or(&empty);
        let is_by_kind = parameters.contains_key(FULL) || parameters.contains_key(SLIDING);
        let of_kind = |kind: &'static str| match is_by_kind {
            true => Ok(Keys(parameters).object(kind)?.unwrap_or(&empty)),
            false if kind == FULL => Ok(parameters),
            false => Ok(&empty),
        };
        let theta = top.positive_or("rope_theta", self.theta)?;
        let mut full = of_kind(FULL)?.clone();
        if let Some(older) = top.object("rope_scaling")? {
            full.extend(older.clone());
        }
        let full = self.read(top, &full, theta)?;
        let shared_theta = if is_by_kind { theta } else { full.theta };
        let local_theta = local_theta.unwrap_or(shared_theta);
        let local = self.read(top, of_kind(SLIDING)?, local_theta)?;
        let of_layer = |slides: &bool| Some(if *slides { &local } else { &full }.clone());
        Ok(sliding.iter().map(of_layer).collect())
    }

    /// The numbers of a head that are rotated, the first of it.
    ///
    /// # Errors
    /// When that is no even part of a head.
    pub(super) fn partial(&self, top: &Keys<'_>, head_dim: usize) -> Result<usize, ConfigError> {
        let key = "partial_rotary_factor";
        let inner = |name: &'static str| -> Result<Option<f64>, ConfigError> {
            let Some(map) = top.object(name)?.filter(|map| !map.is_empty()) else {
                return Ok(None);
            };
            match Keys(map).get(key) {
                Some(_) => Keys(map).positive(key).map(Some),
                None => Ok(None),
            }
        };
        let factor = match (inner("rope_scaling")?, inner("rope_parameters")?) {
            (Some(factor), _) | (None, Some(factor)) => factor,
            (None, None) => top.positive_or(key, 1.0)?,
        };
        let rotary_dim = (head_dim as f64 * factor) as usize;
        if (2..=head_dim).contains(&rotary_dim) && rotary_dim.is_multiple_of(2) {
            return Ok(rotary_dim);
        }
        Err(ConfigError::Value {
            key,
            value: factor.to_string(),
            expected: format!(
                "of a head of {head_dim} it makes {rotary_dim}, and only an even part of it can be rotated"
            ),
        })
    }

    fn read(
        &self,
        top: &Keys<'_>,
        parameters: &Map<String, Value>,
        theta: f64,
    ) -> Result<RopeConfig, ConfigError> {
        let keys = Keys(parameters);
        if let Some((name, value)) = parameters.iter().find(|(_, value)| value.is_object()) {
            return Err(ConfigError::Value {
                key: "rope_parameters",
                value: format!("{{{name:?}: {value}}}"),
                expected: "one embedding for all layers is supported".to_owned(),
            });
        }
        if !self.is_partial {
            for keys in [&keys, top] {
                keys.must_be_number(
                    "partial_rotary_factor",
                    1.0,
                    "partial rotary embedding is not supported",
                )?;
            }
        }
        let theta = match keys.get("rope_theta") {
            Some(_) => keys.positive("rope_theta")?,
            None => theta,
        };
        let max_position = self.max_position;
        // What transformers, too, finds outside of the parameters. A family that has it in its class looks only there.
        let original_max_position = match (
            top.get("original_max_position_embeddings"),
            self.original_max_position,
        ) {
            (Some(_), _) => top.positive("original_max_position_embeddings")?,
            (None, Some(of_family)) => of_family,
            (None, None) => {
                keys.positive_or("original_max_position_embeddings", max_position as f64)?
            }
        };
        let kind = match keys.text("rope_type")? {
            Some(kind) => kind,
            None => keys.text("type")?.unwrap_or("default"),
        };
        let kind = match kind {
            "su" | "yarn" if self.has_old_names => "longrope",
            kind => kind,
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
            "llama3" => llama3(&keys, original_max_position)?,
            "yarn" => yarn(&keys, theta, max_position, original_max_position)?,
            "longrope" => long_rope(&keys, self.rotary_dim, max_position, original_max_position)?,
            other => {
                return Err(ConfigError::Value {
                    key: "rope_type",
                    value: other.to_owned(),
                    expected: "supported are default, linear, dynamic, llama3, yarn and longrope"
                        .to_owned(),
                });
            }
        };
        Ok(RopeConfig { theta, scaling })
    }

    /// Refuses a `rope_scaling` that would silently replace the base frequency beside it.
    fn refuse_two_thetas(
        &self,
        top: &Keys<'_>,
        older: &Map<String, Value>,
        newer: &Map<String, Value>,
    ) -> Result<(), ConfigError> {
        let given = Keys(newer).number_or("rope_theta", self.theta)?;
        if Keys(older).get("rope_theta").is_some()
            || top.get("rope_theta").is_some()
            || given == self.theta
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
}

fn llama3(keys: &Keys<'_>, original_max_position: f64) -> Result<RopeScaling, ConfigError> {
    let low_freq_factor = keys.positive("low_freq_factor")?;
    let high_freq_factor = keys.positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(ConfigError::Value {
            key: "high_freq_factor",
            value: high_freq_factor.to_string(),
            expected: format!("it must be above low_freq_factor = {low_freq_factor}"),
        });
    }
    Ok(RopeScaling::Llama3 {
        factor: keys.positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position,
    })
}

fn long_rope(
    keys: &Keys<'_>,
    rotary_dim: usize,
    max_position: usize,
    original_max_position: f64,
) -> Result<RopeScaling, ConfigError> {
    let factors = |key: &'static str| {
        let factors = keys.positive_list(key)?;
        if factors.len() == rotary_dim / 2 {
            return Ok(factors);
        }
        Err(ConfigError::Value {
            key,
            value: format!("a list of {}", factors.len()),
            expected: format!(
                "longrope needs one for each of {} frequencies",
                rotary_dim / 2
            ),
        })
    };
    let (short, long) = (factors("short_factor")?, factors("long_factor")?);
    let factor = keys.positive_or("factor", max_position as f64 / original_max_position)?;
    let attention_factor = match keys.get("attention_factor") {
        Some(_) => keys.positive("attention_factor")?,
        None if factor <= 1.0 => 1.0,
        None if original_max_position <= 1.0 => {
            return Err(ConfigError::Value {
                key: "original_max_position_embeddings",
                value: original_max_position.to_string(),
                expected: "longrope needs more than 1".to_owned(),
            });
        }
        None => (1.0 + factor.ln() / original_max_position.ln()).sqrt(),
    };
    Ok(RopeScaling::LongRope {
        short,
        long,
        attention_factor,
        original_max_position,
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
