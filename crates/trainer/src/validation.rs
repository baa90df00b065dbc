//! When a run is evaluated, how that went so far, and when it has been of no use for long enough.

use serde::{Deserialize, Serialize};

use crate::evaluate::EvalSet;
use crate::events::EvalMetrics;

/// When a run is evaluated, besides the ends of epochs and of the run, and what ends it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ValidationRule {
    /// Every so many steps; 0: at the ends only.
    pub every: u64,
    /// Before the first step.
    pub on_start: bool,
    /// The run ends after so many evaluations in a row without improvement; 0: never.
    pub patience: u64,
    /// An improvement is more than this.
    pub threshold: f64,
}

/// How evaluations went so far: what a checkpoint keeps of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ValidationState {
    /// Identifies the rows. Losses of other rows say nothing about these.
    data: String,
    /// The lowest loss.
    best: Option<f64>,
    /// The step after which it was.
    best_step: u64,
    /// Evaluations since the last improvement.
    without_improvement: u64,
    /// Whether the step that was saved still has to be evaluated: the run was stopped instead.
    is_pending: bool,
}

/// The evaluations of a run.
#[derive(Clone)]
pub struct Validation {
    /// What is evaluated.
    pub(crate) set: EvalSet,
    rule: ValidationRule,
    state: ValidationState,
}

impl Validation {
    /// Goes on from `saved`, if that is of the same rows. `data` identifies those of `set`.
    pub fn new(
        set: EvalSet,
        rule: ValidationRule,
        data: String,
        saved: Option<ValidationState>,
    ) -> Self {
        let fresh = |is_pending| ValidationState {
            data: data.clone(),
            is_pending,
            ..ValidationState::default()
        };
        let state = match saved {
            Some(saved) if saved.data == data => saved,
            Some(saved) => fresh(saved.is_pending),
            None => fresh(false),
        };
        Self { set, rule, state }
    }

    /// How it went so far.
    pub(crate) fn state(&self) -> &ValidationState {
        &self.state
    }

    /// Whether there is something to evaluate before the step after `done`.
    pub(crate) fn is_due_at_start(&self, done: u64) -> bool {
        self.state.is_pending || (self.rule.on_start && done == 0)
    }

    /// Whether `step` is evaluated. `is_end`: it is the last of its epoch or of the run.
    pub(crate) fn is_due(&self, step: u64, is_end: bool) -> bool {
        let by_rule = self.rule.every > 0 && step.is_multiple_of(self.rule.every);
        by_rule || is_end
    }

    /// Takes note of a result.
    pub(crate) fn add(&mut self, result: &EvalMetrics) {
        let loss = result.eval_loss;
        let state = &mut self.state;
        state.is_pending = false;
        // A loss that is no number is below nothing.
        let improves = match state.best {
            None => loss.is_finite(),
            Some(best) => best - loss > self.rule.threshold,
        };
        state.without_improvement = match improves {
            true => 0,
            false => state.without_improvement + 1,
        };
        // As in transformers, the best is the lowest, whether or not it was enough of an improvement.
        if loss.is_finite() && state.best.is_none_or(|best| loss < best) {
            state.best = Some(loss);
            state.best_step = result.step;
        }
    }

    /// Takes note that the evaluation after `step` is left for the next start. The one before the first step belongs to each
    /// start that has nothing to continue from.
    pub(crate) fn leave_after(&mut self, step: u64) {
        self.state.is_pending = step > 0;
    }

    /// Whether one was left.
    pub(crate) fn is_left(&self) -> bool {
        self.state.is_pending
    }

    /// Why the run ends now, if it does: for the reader.
    pub(crate) fn why_it_ends(&self) -> Option<String> {
        let state = &self.state;
        if self.rule.patience == 0 || state.without_improvement < self.rule.patience {
            return None;
        }
        let by = match self.rule.threshold {
            0.0 => String::new(),
            threshold => format!(" by more than {threshold}"),
        };
        let best = state.best.map_or(String::new(), |best| {
            format!("; the best was {best:.4}, after step {}", state.best_step)
        });
        Some(format!(
            "early stopping: eval_loss has not improved{by} in the last {} evaluations{best} (a larger \
             --early_stopping_patience goes on)",
            state.without_improvement
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tandem_data::Rows;

    use super::*;

    /// Nobody looks at them.
    struct Unread;

    impl Rows for Unread {
        fn len(&self) -> u64 {
            10
        }

        fn seq_length(&self) -> usize {
            4
        }

        fn fill(&self, _: u64, _: &mut [i64], _: &mut [i64], _: &mut [u8]) {
            unreachable!("rows of a test that evaluates nothing")
        }
    }

    fn validation(rule: ValidationRule, data: &str, saved: Option<ValidationState>) -> Validation {
        let set = EvalSet {
            rows: Arc::new(Unread),
            batch_size: 3,
            max_batches: 0,
        };
        Validation::new(set, rule, data.to_owned(), saved)
    }

    fn patient(patience: u64, threshold: f64) -> ValidationRule {
        ValidationRule {
            patience,
            threshold,
            ..ValidationRule::default()
        }
    }

    /// The steps, counted from 1, after whose losses the run would end.
    fn ends(rule: ValidationRule, losses: &[f64]) -> Vec<u64> {
        let mut one = validation(rule, "d", None);
        let mut ended = Vec::new();
        for (step, loss) in (1..).zip(losses) {
            one.add(&result(step, *loss));
            // What is written down is all that counts.
            let text = serde_json::to_string(one.state()).unwrap();
            one = validation(rule, "d", serde_json::from_str(&text).unwrap());
            ended.extend(one.why_it_ends().map(|_| step));
        }
        ended
    }

    fn result(step: u64, eval_loss: f64) -> EvalMetrics {
        EvalMetrics {
            step,
            eval_loss,
            perplexity: eval_loss.exp(),
            eval_tokens: 1,
            eval_seconds: 0.1,
        }
    }

    #[test]
    fn patience_counts_evaluations_without_improvement() {
        assert!(ends(patient(0, 0.0), &[1.0, 2.0, 3.0]).is_empty());
        assert_eq!(ends(patient(1, 0.0), &[1.0, 0.9, 0.9]), [3]);
        assert_eq!(ends(patient(2, 0.0), &[1.0, 1.1, 0.9, 1.0, 0.95]), [5]);
        // Too little is none, and yet the best from then on.
        assert_eq!(ends(patient(2, 0.1), &[1.0, 0.95, 0.86, 0.7]), [3]);
        let nan = f64::NAN;
        assert_eq!(ends(patient(2, 0.0), &[nan, nan, 1.0]), [2]);
        assert_eq!(ends(patient(2, 0.0), &[1.0, nan, nan]), [3]);
    }

    #[test]
    fn the_reason_names_the_best() {
        let mut one = validation(patient(1, 0.5), "d", None);
        one.add(&result(4, 2.0));
        one.add(&result(8, 1.75));
        let why = one.why_it_ends().unwrap();
        for word in ["by more than 0.5", "1.7500, after step 8"] {
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn other_rows_begin_anew() {
        let mut one = validation(patient(1, 0.0), "d", None);
        one.add(&result(1, 1.0));
        one.add(&result(2, 1.0));
        one.leave_after(2);
        let saved = one.state().clone();
        let same = validation(patient(1, 0.0), "d", Some(saved.clone()));
        assert!(same.why_it_ends().is_some() && same.is_due_at_start(2));
        let other = validation(patient(1, 0.0), "e", Some(saved));
        assert!(other.why_it_ends().is_none() && other.is_due_at_start(2));
    }

    #[test]
    fn evaluations_come_when_they_should() {
        let rule = ValidationRule {
            every: 3,
            on_start: true,
            ..ValidationRule::default()
        };
        let one = validation(rule, "d", None);
        assert!(one.is_due_at_start(0) && !one.is_due_at_start(3));
        let due: Vec<u64> = (1..8)
            .filter(|step| one.is_due(*step, *step == 7))
            .collect();
        assert_eq!(due, [3, 6, 7]);
        let used = |max_batches| {
            EvalSet {
                max_batches,
                ..one.set.clone()
            }
            .rows_used()
        };
        assert_eq!([0, 1, 3, 4].map(used), [10, 3, 9, 10]);
    }
}
