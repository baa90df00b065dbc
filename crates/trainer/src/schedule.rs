//! The learning rate of every step.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays.
    #[default]
    Constant,
    /// Falls in a straight line to 0 at the last step.
    Linear,
    /// Falls along half a cosine to 0 at the last step.
    Cosine,
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "constant" => Ok(Self::Constant),
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            other => Err(format!(
                "{other:?} is not a schedule; use constant, linear or cosine"
            )),
        }
    }
}

/// A whole run's learning rates, as transformers' `get_scheduler` defines them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// The highest rate.
    pub peak: f64,
    /// Shape after the warm-up.
    pub schedule: Schedule,
    /// Steps in which the rate rises in a straight line from 0.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
}

impl LearningRate {
    /// The rate of update `step`, counted from 1.
    pub fn at(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1) as f64;
        let warmup = self.warmup_steps as f64;
        if done < warmup {
            return self.peak * done / warmup;
        }
        let progress = ((done - warmup) / (self.total_steps as f64 - warmup).max(1.0)).min(1.0);
        let factor = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_decays() {
        let rate = |schedule| LearningRate {
            peak: 1.0,
            schedule,
            warmup_steps: 4,
            total_steps: 12,
        };
        assert_eq!(rate(Schedule::Constant).at(1), 0.0);
        assert_eq!(rate(Schedule::Constant).at(3), 0.5);
        assert_eq!(rate(Schedule::Constant).at(100), 1.0);
        assert_eq!(rate(Schedule::Linear).at(9), 0.5);
        assert!((rate(Schedule::Cosine).at(9) - 0.5).abs() < 1e-12);
        assert_eq!(rate(Schedule::Linear).at(99), 0.0);
    }
}
