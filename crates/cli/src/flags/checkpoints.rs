//! Flags about checkpoints and recovery.

use clap::{ArgAction, Args};
use tandem_run::spec::{Checkpoints, Kept, Saving, Watch};

use crate::flags::choices::Order;

/// When checkpoints are written, which are kept, and what happens after a failure.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Checkpoints")]
pub struct CheckpointFlags {
    /// Save every N optimizer steps, besides the end of every epoch and of the run; 0: only then.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub save_steps: u64,

    /// Copy the state and write it while training goes on; false: training waits for the disk.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub async_save: bool,

    /// Checkpoints to keep; all when not given. The latest is always kept.
    #[arg(long, value_name = "N")]
    pub num_to_keep: Option<usize>,

    /// Keep the best checkpoints by this number (loss, eval_loss, grad_norm, step, ...) instead of the newest.
    #[arg(long, value_name = "NAME")]
    pub checkpoint_score_attribute: Option<String>,

    /// Whether a large score is good [default: min for losses and perplexities, otherwise max].
    #[arg(long, value_enum)]
    pub checkpoint_score_order: Option<Order>,

    /// Continue an experiment at the exact next sample, on any mesh, with either strategy: its name in the storage path, its
    /// folder, or the folder of one of its checkpoints, which is then the one to continue from. Flags that are not given are
    /// those that the experiment had.
    #[arg(long, value_name = "NAME|DIR")]
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

/// What a run continues from.
pub struct Resume {
    /// The experiment.
    pub from: Option<String>,
    /// Take the checkpoint before a damaged one.
    pub fallback: bool,
}

impl CheckpointFlags {
    /// Their sections, and what a run continues from.
    pub fn into_spec(self) -> (Checkpoints, Resume) {
        let Self {
            save_steps,
            async_save,
            num_to_keep,
            checkpoint_score_attribute,
            checkpoint_score_order,
            resume_from,
            resume_fallback,
            max_failures,
            hang_timeout_s,
        } = self;
        let order = checkpoint_score_order.unwrap_or_else(|| {
            let is_loss = |name: &String| name.ends_with("loss") || name.ends_with("perplexity");
            match checkpoint_score_attribute.as_ref().is_some_and(is_loss) {
                true => Order::Min,
                false => Order::Max,
            }
        });
        let checkpoints = Checkpoints {
            saving: Saving {
                save_steps,
                async_save,
            },
            kept: Kept {
                max_failures,
                num_to_keep,
                checkpoint_score_attribute,
                checkpoint_score_order: order.into(),
            },
            watch: Watch { hang_timeout_s },
        };
        let resume = Resume {
            from: resume_from,
            fallback: resume_fallback,
        };
        (checkpoints, resume)
    }
}
