//! Which adapters are trained in the place of the model.

use std::path::PathBuf;

use serde::Serialize;
use tandem_model::lora::{LoraConfig, LoraTargets};

use crate::failure::{Failure, Outcome};

/// What is given about adapters; `None` where a flag is not.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Lora {
    /// The rank; 0 is no adapters.
    pub lora_r: Option<usize>,
    /// The scale's numerator.
    pub lora_alpha: Option<f64>,
    /// Probability that an element of an adapter's input is dropped in training.
    pub lora_dropout: Option<f64>,
    /// Names of matrices with commas between them, a regular expression, or `all-linear`.
    pub lora_target_modules: Option<String>,
    /// Divide the scale by the root of the rank instead of the rank.
    pub use_rslora: Option<bool>,
    /// A folder as PEFT writes it, with the adapters to begin with.
    pub adapter: Option<PathBuf>,
}

/// The scale's numerator, where it is not given.
const ALPHA: f64 = 16.0;

/// Beyond every width of a layer.
const MAX_RANK: usize = 65_536;

impl Lora {
    /// Whether adapters are trained.
    pub fn is_on(&self) -> bool {
        self.adapter.is_some() || self.lora_r.is_some_and(|r| r > 0)
    }

    /// Refuses what cannot be.
    pub(crate) fn check(&self) -> Outcome<()> {
        let wrong = |message: String| Err(Failure::usage(message));
        if !self.is_on() {
            let given = [
                ("lora_alpha", self.lora_alpha.is_some()),
                ("lora_dropout", self.lora_dropout.is_some()),
                ("lora_target_modules", self.lora_target_modules.is_some()),
                ("use_rslora", self.use_rslora == Some(true)),
            ];
            if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) {
                return wrong(format!(
                    "--{flag} is about adapters, and there are none; pass --lora_r or --adapter too, or leave it out"
                ));
            }
            return Ok(());
        }
        if let Some(r) = self.lora_r.filter(|r| *r > MAX_RANK) {
            return wrong(format!("--lora_r is {r}; it must be from 0 to {MAX_RANK}"));
        }
        if let Some(alpha) = self.lora_alpha.filter(|x| !x.is_finite() || *x <= 0.0) {
            return wrong(format!("--lora_alpha is {alpha}; it must be above 0"));
        }
        if let Some(p) = self.lora_dropout.filter(|p| !(0.0..1.0).contains(p)) {
            return wrong(format!(
                "--lora_dropout is {p}; it must be from 0 to below 1"
            ));
        }
        self.targets()?;
        Ok(())
    }

    fn targets(&self) -> Outcome<Option<LoraTargets>> {
        let targets = self.lora_target_modules.as_deref();
        let targets = targets.map(LoraTargets::from_text).transpose();
        targets.map_err(|error| Failure::usage(format!("--lora_target_modules: {error}")))
    }

    /// What is trained, if these are adapters; `found` is what their folder says, where one is given.
    ///
    /// # Errors
    /// A flag contradicts the folder.
    pub(crate) fn config(&self, found: Option<&LoraConfig>) -> Outcome<Option<LoraConfig>> {
        if !self.is_on() {
            return Ok(None);
        }
        let Some(found) = found else {
            return Ok(Some(LoraConfig {
                r: self.lora_r.unwrap_or_default(),
                alpha: self.lora_alpha.unwrap_or(ALPHA),
                dropout: self.lora_dropout.unwrap_or(0.0),
                use_rslora: self.use_rslora.unwrap_or(false),
                targets: self.targets()?.unwrap_or(LoraTargets::AllLinear),
            }));
        };
        let contradicts = |flag: &str, given: String, is: String| {
            Err(Failure::usage(format!(
                "--{flag} is {given}, but adapter_config.json of --adapter says {is}; leave the flag out"
            )))
        };
        match self.lora_r {
            Some(r) if r != found.r => {
                return contradicts("lora_r", r.to_string(), found.r.to_string());
            }
            _ => {}
        }
        match self.lora_alpha {
            Some(alpha) if alpha != found.alpha => {
                return contradicts("lora_alpha", alpha.to_string(), found.alpha.to_string());
            }
            _ => {}
        }
        match self.use_rslora {
            Some(on) if on != found.use_rslora => {
                return contradicts("use_rslora", on.to_string(), found.use_rslora.to_string());
            }
            _ => {}
        }
        match self.targets()? {
            Some(targets) if targets != found.targets => {
                let is = found.targets.to_string();
                return contradicts("lora_target_modules", targets.to_string(), is);
            }
            _ => {}
        }
        Ok(Some(LoraConfig {
            // Only training knows dropout.
            dropout: self.lora_dropout.unwrap_or(found.dropout),
            ..found.clone()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(r: usize) -> Lora {
        Lora {
            lora_r: Some(r),
            ..Lora::default()
        }
    }

    #[test]
    fn flags_are_a_config_and_agree_with_a_folder() {
        assert_eq!(Lora::default().config(None).unwrap(), None);
        assert_eq!(lora(0).config(None).unwrap(), None);
        let flags = Lora {
            lora_target_modules: Some("q_proj, v_proj".into()),
            lora_alpha: Some(4.0),
            ..lora(8)
        };
        flags.check().unwrap();
        let config = flags.config(None).unwrap().unwrap();
        assert_eq!((config.r, config.scale()), (8, 0.5));
        assert!(config.adapts("model.layers.0.self_attn.v_proj"));
        let same = flags.config(Some(&config)).unwrap().unwrap();
        assert_eq!(same, config);
        let from_folder = Lora {
            adapter: Some("x".into()),
            ..Lora::default()
        };
        assert_eq!(
            from_folder.config(Some(&config)).unwrap(),
            Some(config.clone())
        );
        let failure = lora(4).config(Some(&config)).unwrap_err();
        assert!(
            failure.message.contains("--lora_r is 4"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (wrong, word) in [
            (
                Lora {
                    lora_alpha: Some(1.0),
                    ..Lora::default()
                },
                "--lora_alpha",
            ),
            (
                Lora {
                    lora_dropout: Some(1.0),
                    ..lora(2)
                },
                "below 1",
            ),
            (
                Lora {
                    lora_alpha: Some(0.0),
                    ..lora(2)
                },
                "above 0",
            ),
            (
                Lora {
                    lora_target_modules: Some("q_proj,".into()),
                    ..lora(2)
                },
                "empty name",
            ),
            (lora(70_000), "65536"),
        ] {
            let failure = wrong.check().unwrap_err();
            assert!(
                failure.message.contains(word) && failure.exit_code == 2,
                "{}",
                failure.message
            );
        }
    }
}
