//! The flags about validation.

use clap::{ArgAction, Args, ValueEnum};
use tandem_run::spec::{EvalStrategy, Evaluation};

/// On what a run is evaluated, when, and what follows.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Evaluation")]
pub struct EvalFlags {
    /// When to evaluate: every --eval_steps steps (and at the ends of epochs and of the run), at these ends only, or not at all
    /// whatever other flags say. Without the flag, any other flag about evaluation asks for one.
    #[arg(long, value_enum)]
    pub eval_strategy: Option<EvalStrategyChoice>,

    /// What to evaluate on, as --dataset_name; without it, the validation or test split of the dataset itself.
    #[arg(long, value_name = "NAME")]
    pub eval_dataset_name: Option<String>,

    /// The configuration to evaluate on, as --dataset_config [default: without --eval_dataset_name, that of --dataset_config].
    #[arg(long, value_name = "NAME")]
    pub eval_dataset_config: Option<String>,

    /// The split to evaluate on [default: the first there is of validation, test and, of --eval_dataset_name, train].
    #[arg(long, value_name = "SPLIT")]
    pub eval_split: Option<String>,

    /// Evaluate every N steps, besides the ends of epochs and of the run; 0: only then.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub eval_steps: u64,

    /// Evaluate before the first step too.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub eval_on_start: bool,

    /// Evaluate on the rows of the first N batches of --eval_batch_size only; 0: on all. How many ranks share them does not matter.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub eval_max_batches: u64,

    /// Rows per worker in one forward [default: batch_size]. The result does not depend on it.
    #[arg(long, value_name = "N")]
    pub eval_batch_size: Option<usize>,

    /// End the run after N evaluations in a row without a lower eval_loss; 0: never.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub early_stopping_patience: u64,

    /// By how much eval_loss must fall to count as lower.
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    pub early_stopping_threshold: f64,
}

/// When a run is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EvalStrategyChoice {
    /// Never.
    No,
    /// Every --eval_steps steps, and at the ends of epochs and of the run.
    Steps,
    /// At the ends of epochs and of the run.
    Epoch,
}

impl From<EvalStrategyChoice> for EvalStrategy {
    fn from(choice: EvalStrategyChoice) -> Self {
        match choice {
            EvalStrategyChoice::No => Self::No,
            EvalStrategyChoice::Steps => Self::Steps,
            EvalStrategyChoice::Epoch => Self::Epoch,
        }
    }
}

impl EvalFlags {
    /// Their section of the spec.
    pub fn to_spec(&self) -> Evaluation {
        Evaluation {
            eval_strategy: self.eval_strategy.map(Into::into),
            eval_dataset_name: self.eval_dataset_name.clone(),
            eval_dataset_config: self.eval_dataset_config.clone(),
            eval_split: self.eval_split.clone(),
            eval_steps: self.eval_steps,
            eval_on_start: self.eval_on_start,
            eval_max_batches: self.eval_max_batches,
            eval_batch_size: self.eval_batch_size,
            early_stopping_patience: self.early_stopping_patience,
            early_stopping_threshold: self.early_stopping_threshold,
        }
    }
}
