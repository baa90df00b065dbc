//! The flags about validation, and what they mean together.

use serde::Serialize;
use tandem_trainer::ValidationRule;

use super::{Checkpoints, Data, RunSpec};
use crate::failure::{Failure, Outcome};

/// Splits that a dataset is evaluated on if nobody names one: the first that is there.
const OF_THE_SAME: [&str; 2] = ["validation", "test"];
const OF_ANOTHER: [&str; 3] = ["validation", "test", "train"];

/// What a run is evaluated on, when, and what follows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Evaluation {
    /// When; what other fields ask for where it is not said.
    pub eval_strategy: Option<EvalStrategy>,
    /// Another dataset than the one that is trained on.
    pub eval_dataset_name: Option<String>,
    /// Its configuration; without another dataset, that of the one that is trained on.
    pub eval_dataset_config: Option<String>,
    /// Its split.
    pub eval_split: Option<String>,
    /// Every so many steps, besides the ends of epochs and of the run; 0 is only then.
    pub eval_steps: u64,
    /// Before the first step too.
    pub eval_on_start: bool,
    /// Only the rows of the first so many batches; 0 is all.
    pub eval_max_batches: u64,
    /// Rows per worker in one forward pass.
    pub eval_batch_size: Option<usize>,
    /// Evaluations without improvement that end the run; 0 is never.
    pub early_stopping_patience: u64,
    /// By how much the loss must fall to count as lower.
    pub early_stopping_threshold: f64,
}

/// When a run is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalStrategy {
    /// Never.
    No,
    /// Every so many steps, and at the ends of epochs and of the run.
    Steps,
    /// At the ends of epochs and of the run.
    Epoch,
}

/// Rows to evaluate on, before it is known which of the splits there are.
#[derive(Debug, Clone)]
pub struct EvalChoice {
    /// A name on the hub, a file, a folder, or a list of files.
    pub dataset: String,
    /// What is said about it; its split is one of `splits`.
    pub data: Data,
    /// The first of these that the dataset has.
    pub splits: Vec<String>,
    /// Whether these are other files than those that are trained on, because somebody said so.
    pub is_named: bool,
}

impl Evaluation {
    /// Whether anything asks for evaluations.
    pub fn is_on(&self) -> bool {
        match self.eval_strategy {
            Some(EvalStrategy::No) => false,
            Some(EvalStrategy::Steps | EvalStrategy::Epoch) => true,
            None => {
                self.eval_dataset_name.is_some()
                    || self.eval_dataset_config.is_some()
                    || self.eval_split.is_some()
                    || self.eval_steps > 0
                    || self.eval_on_start
                    || self.eval_max_batches > 0
                    || self.eval_batch_size.is_some()
                    || self.early_stopping_patience > 0
            }
        }
    }

    /// When a run is evaluated, and what ends it.
    pub fn rule(&self) -> ValidationRule {
        ValidationRule {
            every: self.eval_steps,
            on_start: self.eval_on_start,
            patience: self.early_stopping_patience,
            threshold: self.early_stopping_threshold,
        }
    }

    /// What names the data to the user.
    pub fn flag(&self) -> &'static str {
        if self.eval_dataset_name.is_some() {
            "--eval_dataset_name"
        } else if self.eval_split.is_some() {
            "--eval_split"
        } else if self.eval_dataset_config.is_some() {
            "--eval_dataset_config"
        } else {
            "evaluation"
        }
    }

    /// What a run that trains on `data` is evaluated on: rows that are made as those are, of all documents.
    pub fn choice(&self, data: &Data) -> EvalChoice {
        let other = self.eval_dataset_name.as_ref();
        let mut own = Data {
            dataset_percentage: 100.0,
            ..data.clone()
        };
        if other.is_some() || self.eval_dataset_config.is_some() {
            own.dataset_config = self.eval_dataset_config.clone();
        }
        let defaults = match other {
            Some(_) => &OF_ANOTHER[..],
            None => &OF_THE_SAME,
        };
        let splits = match &self.eval_split {
            Some(split) => vec![split.clone()],
            None => defaults.iter().map(|split| (*split).to_owned()).collect(),
        };
        let trained = || data.datasets().into_iter().next();
        EvalChoice {
            dataset: match other {
                Some(name) => name.clone(),
                None => trained().map_or_else(String::new, |dataset| dataset.name),
            },
            data: own,
            splits,
            is_named: other.is_some()
                || self.eval_split.is_some()
                || self.eval_dataset_config.is_some(),
        }
    }
}

/// Refuses what cannot be.
pub fn check(spec: &RunSpec) -> Outcome<()> {
    let evaluation = &spec.compute.evaluation;
    let problem = match evaluation.eval_strategy {
        _ if evaluation.eval_batch_size == Some(0) => {
            "--eval_batch_size is 0; it must be at least 1"
        }
        Some(EvalStrategy::Steps) if evaluation.eval_steps == 0 => {
            "--eval_strategy steps needs --eval_steps, after how many"
        }
        Some(EvalStrategy::Epoch) if evaluation.eval_steps > 0 => {
            "--eval_strategy epoch evaluates at the ends of epochs only; leave --eval_steps out, or pass --eval_strategy steps"
        }
        // Losses of several datasets are several numbers, and a mixture is for training.
        _ if evaluation.is_on()
            && evaluation.eval_dataset_name.is_none()
            && spec.identity.selection.data.datasets().len() > 1 =>
        {
            "there are several --dataset_name; name the one to evaluate on with --eval_dataset_name"
        }
        _ if !(evaluation.early_stopping_threshold >= 0.0
            && evaluation.early_stopping_threshold.is_finite()) =>
        {
            "--early_stopping_threshold must be 0 or more"
        }
        _ if evaluation.early_stopping_threshold > 0.0
            && evaluation.early_stopping_patience == 0 =>
        {
            "--early_stopping_threshold needs --early_stopping_patience, after how many evaluations"
        }
        _ if evaluation.is_on()
            && evaluation.eval_dataset_name.is_none()
            && spec.identity.selection.data.dataset_name.len() > 1 =>
        {
            "a mixture of datasets has no split of its own; pass --eval_dataset_name, or --eval_strategy no"
        }
        _ => return check_score(evaluation, &spec.checkpoints),
    };
    Err(Failure::usage(problem))
}

/// A checkpoint that is ranked by an evaluation must have one of its own step.
fn check_score(evaluation: &Evaluation, checkpoints: &Checkpoints) -> Outcome<()> {
    let attribute = checkpoints.kept.checkpoint_score_attribute.as_deref();
    let Some(name @ ("eval_loss" | "perplexity")) = attribute else {
        return Ok(());
    };
    if !evaluation.is_on() {
        return Err(Failure::usage(format!(
            "--checkpoint_score_attribute {name} needs evaluations; ask for them with --eval_steps, --eval_strategy or \
             --eval_dataset_name"
        )));
    }
    let (every, save) = (evaluation.eval_steps, checkpoints.saving.save_steps);
    let is_evaluated = save == 0 || (every > 0 && save.is_multiple_of(every));
    if is_evaluated {
        return Ok(());
    }
    let instead = match every {
        0 => format!("pass --eval_steps {save} too, or leave --save_steps out"),
        every => {
            let next = save.next_multiple_of(every);
            format!("make --save_steps a multiple of --eval_steps {every}, {next} for example")
        }
    };
    Err(Failure::usage(format!(
        "--checkpoint_score_attribute {name} ranks checkpoints by the evaluation of their step, and --save_steps {save} saves \
         where there is none; {instead}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flag_asks_for_evaluations_and_no_refuses_them() {
        let none = Evaluation::default();
        assert!(!none.is_on());
        let of = |change: fn(&mut Evaluation)| {
            let mut one = Evaluation::default();
            change(&mut one);
            one
        };
        let all: [fn(&mut Evaluation); 9] = [
            |it| it.eval_strategy = Some(EvalStrategy::Epoch),
            |it| it.eval_dataset_name = Some("x".into()),
            |it| it.eval_dataset_config = Some("x".into()),
            |it| it.eval_split = Some("x".into()),
            |it| it.eval_steps = 1,
            |it| it.eval_on_start = true,
            |it| it.eval_max_batches = 1,
            |it| it.eval_batch_size = Some(1),
            |it| it.early_stopping_patience = 1,
        ];
        for change in all {
            let mut one = of(change);
            assert!(one.is_on(), "{one:?}");
            one.eval_strategy = Some(EvalStrategy::No);
            assert!(!one.is_on(), "{one:?}");
        }
    }
}
