//! The learning rate of every step, as transformers' `get_scheduler` has it, or as DeepSpeed's schedulers do.

use std::f64::consts::PI;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays.
    #[default]
    Constant,
    /// Falls in a straight line to 0 at the last step.
    Linear,
    /// Falls along half a cosine to 0 at the last step.
    Cosine,
    /// Falls along half a cosine to a part of the peak at the last step.
    CosineWithMinLr,
    /// Stays, and falls along half a cosine in the last steps (WSD; Hu et al., arXiv 2404.06395).
    WarmupStableDecay,
    /// DeepSpeed's `WarmupLR`: stays.
    WarmupLr,
    /// DeepSpeed's `WarmupDecayLR`: falls in a straight line to where the warm-up began.
    WarmupDecayLr,
    /// DeepSpeed's `WarmupCosineLR`: falls along half a cosine to a part of the peak.
    WarmupCosineLr,
}

/// How the rate rises during the warm-up of DeepSpeed's schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmupType {
    /// With the logarithm of the step.
    #[default]
    Log,
    /// In a straight line.
    Linear,
}

impl Schedule {
    /// Their names on the command line.
    const NAMES: [(&str, Self); 8] = [
        ("constant", Self::Constant),
        ("linear", Self::Linear),
        ("cosine", Self::Cosine),
        ("cosine_with_min_lr", Self::CosineWithMinLr),
        ("warmup_stable_decay", Self::WarmupStableDecay),
        ("warmup_lr", Self::WarmupLr),
        ("warmup_decay_lr", Self::WarmupDecayLr),
        ("warmup_cosine_lr", Self::WarmupCosineLr),
    ];

    /// Whether it ends at a part of the peak that one may choose.
    pub fn has_min_lr(self) -> bool {
        matches!(
            self,
            Self::CosineWithMinLr | Self::WarmupStableDecay | Self::WarmupCosineLr
        )
    }

    /// Whether it is one of DeepSpeed's, whose warm-up has a form and a begin that one may choose.
    pub fn is_of_deepspeed(self) -> bool {
        matches!(
            self,
            Self::WarmupLr | Self::WarmupDecayLr | Self::WarmupCosineLr
        )
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, schedule)| *schedule).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            format!("{text:?} is not a schedule; use one of {names}")
        })
    }
}

/// A whole run's learning rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// The highest rate.
    pub peak: f64,
    /// Shape after the warm-up.
    pub schedule: Schedule,
    /// Steps in which the rate rises.
    pub warmup_steps: u64,
    /// How it rises, where [`Schedule::is_of_deepspeed`]; in a straight line elsewhere.
    pub warmup_type: WarmupType,
    /// The part of the peak at which it begins to rise, where [`Schedule::is_of_deepspeed`].
    pub warmup_min_ratio: f64,
    /// The last steps, in which [`Schedule::WarmupStableDecay`] falls.
    pub decay_steps: u64,
    /// What is left of the peak at the end, where [`Schedule::has_min_lr`].
    pub min_lr_ratio: f64,
    /// Steps after which the schedule is at its end: those of the whole run, as a rule.
    pub total_steps: u64,
}

impl LearningRate {
    /// The rate of update `step`, counted from 1.
    pub fn at(&self, step: u64) -> f64 {
        self.peak * self.factor(step.saturating_sub(1))
    }

    /// The part of the peak after `done` updates.
    fn factor(&self, done: u64) -> f64 {
        if self.schedule.is_of_deepspeed() {
            return self.factor_of_deepspeed(done);
        }
        let above_min = |factor: f64| factor * (1.0 - self.min_lr_ratio) + self.min_lr_ratio;
        let is_stable_decay = self.schedule == Schedule::WarmupStableDecay;
        if done < self.warmup_steps {
            let risen = done as f64 / self.warmup_steps as f64;
            // So it is for transformers: of all schedules, this one begins where it ends.
            return if is_stable_decay {
                above_min(risen)
            } else {
                risen
            };
        }
        let (start, steps) = if is_stable_decay {
            let start = self.total_steps.saturating_sub(self.decay_steps);
            (start.max(self.warmup_steps), self.decay_steps)
        } else {
            let steps = self.total_steps.saturating_sub(self.warmup_steps);
            (self.warmup_steps, steps)
        };
        let progress = done.saturating_sub(start) as f64 / steps.max(1) as f64;
        let progress = progress.min(1.0);
        let half_cosine = 0.5 * (1.0 + (PI * progress).cos());
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => half_cosine,
            Schedule::CosineWithMinLr | Schedule::WarmupStableDecay => above_min(half_cosine),
            Schedule::WarmupLr | Schedule::WarmupDecayLr | Schedule::WarmupCosineLr => {
                unreachable!("DeepSpeed's have their own function")
            }
        }
    }

    /// The same for DeepSpeed's schedules (`deepspeed/runtime/lr_schedules.py`). They are a step late: the first update has
    /// the rate that they begin with, and the second is their step 0.
    fn factor_of_deepspeed(&self, done: u64) -> f64 {
        let is_cosine = self.schedule == Schedule::WarmupCosineLr;
        let risen_above = |part: f64, min: f64| min + (1.0 - min) * part;
        let Some(step) = done.checked_sub(1) else {
            return if is_cosine {
                0.0
            } else {
                self.warmup_min_ratio
            };
        };
        let warmup = self.warmup_steps.max(2);
        if step < warmup {
            let risen = match self.warmup_type {
                WarmupType::Log => ((step + 1) as f64).ln() / (warmup as f64).ln(),
                WarmupType::Linear => step as f64 / warmup as f64,
            };
            return risen_above(risen, self.warmup_min_ratio);
        }
        let falling = self.total_steps.saturating_sub(warmup).max(1) as f64;
        match self.schedule {
            Schedule::WarmupCosineLr => {
                let progress = ((step - warmup + 1) as f64 / falling).min(1.0);
                let half_cosine = 0.5 * (1.0 + (PI * progress).cos());
                risen_above(half_cosine, self.min_lr_ratio)
            }
            Schedule::WarmupDecayLr => {
                let left = self.total_steps.saturating_sub(step) as f64 / falling;
                risen_above(left, self.warmup_min_ratio)
            }
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the functions in `transformers/optimization.py` (5.24) give for 4 steps of warm-up, 20 in all, 6 of decay, and
    /// 0.1 as the ratio, from the first step on.
    #[rustfmt::skip]
    const RECORDED: [(&str, &[f64]); 5] = [
        ("constant", &[0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", &[
            0.0, 0.25, 0.5, 0.75, 1.0, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5, 0.4375, 0.375, 0.3125, 0.25,
            0.1875, 0.125, 0.0625, 0.0, 0.0,
        ]),
        ("cosine", &[
            0.0, 0.25, 0.5, 0.75, 1.0, 0.9903926402, 0.9619397663, 0.9157348062, 0.8535533906, 0.7777851165, 0.6913417162,
            0.597545161, 0.5, 0.402454839, 0.3086582838, 0.2222148835, 0.1464466094, 0.0842651938, 0.0380602337, 0.0096073598,
        ]),
        ("cosine_with_min_lr", &[
            0.0, 0.25, 0.5, 0.75, 1.0, 0.9913533762, 0.9657457896, 0.9241613255, 0.8681980515, 0.8000066049, 0.7222075446,
            0.6377906449, 0.55, 0.4622093551, 0.3777924554, 0.2999933951, 0.2318019485, 0.1758386745, 0.1342542104, 0.1086466238,
        ]),
        ("warmup_stable_decay", &[
            0.1, 0.325, 0.55, 0.775, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9397114317, 0.775, 0.55, 0.325,
            0.1602885683, 0.1, 0.1,
        ]),
    ];

    #[test]
    fn rates_are_those_of_transformers() {
        for (name, recorded) in RECORDED {
            let rate = LearningRate {
                peak: 2.0,
                schedule: name.parse().unwrap(),
                warmup_steps: 4,
                warmup_type: WarmupType::Log,
                warmup_min_ratio: 0.0,
                decay_steps: 6,
                min_lr_ratio: 0.1,
                total_steps: 20,
            };
            for (done, factor) in recorded.iter().enumerate() {
                let found = rate.at(done as u64 + 1) / 2.0;
                assert!(
                    (found - factor).abs() < 1e-9,
                    "{name} {done}: {found} {factor}"
                );
            }
        }
    }

    /// What the formulas of DeepSpeed 0.18's `lr_schedules.py` give, worked out by hand in Python: a peak of 2, a warm-up of 4
    /// steps from 0.2, 10 steps in all, the cosine down to a tenth. The first is what the constructor sets.
    #[rustfmt::skip]
    const OF_DEEPSPEED: [(&str, WarmupType, &[f64]); 6] = [
        ("warmup_lr", WarmupType::Log, &[0.2, 0.2, 1.1, 1.6264662506, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        ("warmup_lr", WarmupType::Linear, &[0.2, 0.2, 0.65, 1.1, 1.55, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        ("warmup_decay_lr", WarmupType::Log, &[0.2, 0.2, 1.1, 1.6264662506, 2.0, 2.0, 1.7, 1.4, 1.1, 0.8, 0.5, 0.2, 0.2]),
        ("warmup_decay_lr", WarmupType::Linear, &[0.2, 0.2, 0.65, 1.1, 1.55, 2.0, 1.7, 1.4, 1.1, 0.8, 0.5, 0.2, 0.2]),
        ("warmup_cosine_lr", WarmupType::Log, &[0.0, 0.2, 1.1, 1.6264662506, 2.0, 1.8794228634, 1.55, 1.1, 0.65, 0.3205771366, 0.2, 0.2, 0.2]),
        ("warmup_cosine_lr", WarmupType::Linear, &[0.0, 0.2, 0.65, 1.1, 1.55, 1.8794228634, 1.55, 1.1, 0.65, 0.3205771366, 0.2, 0.2, 0.2]),
    ];

    #[test]
    fn rates_are_those_of_deepspeed() {
        for (name, warmup_type, recorded) in OF_DEEPSPEED {
            let rate = LearningRate {
                peak: 2.0,
                schedule: name.parse().unwrap(),
                warmup_steps: 4,
                warmup_type,
                warmup_min_ratio: 0.1,
                decay_steps: 0,
                min_lr_ratio: 0.1,
                total_steps: 10,
            };
            for (done, expected) in recorded.iter().enumerate() {
                let found = rate.at(done as u64 + 1);
                assert!(
                    (found - expected).abs() < 1e-9,
                    "{name} {done}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn steps_that_do_not_fit_give_no_nonsense() {
        for (name, _) in Schedule::NAMES {
            for (warmup_steps, decay_steps, total_steps) in
                [(0, 0, 0), (9, 9, 5), (0, 9, 5), (u64::MAX, 1, 5)]
            {
                let rate = LearningRate {
                    peak: 1.0,
                    schedule: name.parse().unwrap(),
                    warmup_steps,
                    warmup_type: WarmupType::Log,
                    warmup_min_ratio: 0.0,
                    decay_steps,
                    min_lr_ratio: 0.0,
                    total_steps,
                };
                for step in [0, 1, 5, 99] {
                    assert!((0.0..=1.0).contains(&rate.at(step)), "{rate:?} {step}");
                }
            }
        }
        assert!(
            "cosin"
                .parse::<Schedule>()
                .unwrap_err()
                .contains("cosine_with_min_lr")
        );
    }
}
