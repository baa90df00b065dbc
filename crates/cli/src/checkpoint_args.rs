//! Flags about checkpoints and recovery.

use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;
use tandem_checkpoint::{Retention, Score, ScoreOrder};
use tandem_trainer::SaveRule;

use crate::failure::{Failure, Outcome};

/// When checkpoints are written, which are kept, and what happens after a failure.
#[derive(Debug, Clone, Args, Serialize)]
#[command(rename_all = "snake_case", next_help_heading = "Checkpoints")]
pub struct CheckpointArgs {
    /// Save every N optimizer steps, besides the end of every epoch and of the run; 0: only then.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub save_steps: u64,

    /// Copy the state and write it while training goes on; false: training waits for the disk.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub async_save: bool,

    /// Checkpoints to keep; all when not given. The latest is always kept.
    #[arg(long, value_name = "N")]
    pub num_to_keep: Option<usize>,

    /// Keep the best checkpoints by this number (loss, grad_norm, step, ...) instead of the newest.
    #[arg(long, value_name = "NAME")]
    pub checkpoint_score_attribute: Option<String>,

    /// Whether a large score is good.
    #[arg(long, value_enum, default_value_t = Order::Max)]
    pub checkpoint_score_order: Order,

    /// Continue the experiment of this name in the storage path, at the exact next sample; on any mesh, with either
    /// strategy.
    #[arg(long, value_name = "NAME")]
    pub resume_from: Option<String>,

    /// When the newest checkpoint is damaged, take the one before it.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub resume_fallback: bool,

    /// Failures without progress in between after which all workers start again from the last checkpoint; -1: no limit.
    #[arg(
        long,
        default_value_t = 0,
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub max_failures: i64,

    /// Seconds without a sign of life of any worker after which the run counts as stuck; 0: never.
    #[arg(long, default_value_t = 600, value_name = "S")]
    pub hang_timeout_s: u64,
}

/// What is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Much.
    Max,
    /// Little.
    Min,
}

impl CheckpointArgs {
    /// Refuses what cannot be.
    pub fn check(&self, experiment_name: Option<&str>) -> Outcome<()> {
        if self.num_to_keep == Some(0) {
            return Err(Failure::usage(
                "--num_to_keep is 0; it must be at least 1, or left out to keep all checkpoints",
            ));
        }
        if self.max_failures < -1 {
            return Err(Failure::usage(format!(
                "--max_failures is {}; it must be 0 or more, or -1 for no limit",
                self.max_failures
            )));
        }
        if let (Some(resume), Some(name)) = (&self.resume_from, experiment_name)
            && resume != name
        {
            return Err(Failure::usage(format!(
                "--resume_from {resume} continues that experiment in place, but --experiment_name is {name}; leave \
                 --experiment_name out"
            )));
        }
        Ok(())
    }

    /// Which checkpoints stay.
    pub fn retention(&self) -> Retention {
        Retention {
            num_to_keep: self.num_to_keep,
            score: self
                .checkpoint_score_attribute
                .as_ref()
                .map(|attribute| Score {
                    attribute: attribute.clone(),
                    order: match self.checkpoint_score_order {
                        Order::Max => ScoreOrder::Max,
                        Order::Min => ScoreOrder::Min,
                    },
                }),
        }
    }

    /// When checkpoints are written.
    pub fn rule(&self) -> SaveRule {
        SaveRule {
            every: self.save_steps,
            asynchronous: self.async_save,
        }
    }
}
