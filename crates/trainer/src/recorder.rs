//! What rank 0 writes down of a run: `metrics.jsonl`, a line for each step and for each evaluation; the same as curves for
//! TensorBoard; `events.jsonl`; and the loss history.

mod lines;

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tandem_files::{open_own, read_small, write_whole};

use crate::error::TrainError;
use crate::events::{EvalMetrics, StepMetrics};
use crate::journal::{Happening, Journal, now};
use crate::tensorboard::Curves;
use lines::Lines;

/// Writes what rank 0 records of a run.
pub struct Recorder {
    metrics: Option<(PathBuf, Lines<File>)>,
    /// For people; what cannot be written of these two ends no run.
    curves: Option<Curves>,
    journal: Option<Journal>,
    history: Option<PathBuf>,
    losses: Vec<LossPoint>,
    /// The step of the last evaluation.
    evaluated: Option<u64>,
}

/// A line of the metrics, as far as it is read again.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Step(LossPoint),
    Evaluation {
        step: u64,
        /// A number, or null for one that is none.
        #[serde(rename = "eval_loss")]
        _loss: serde_json::Value,
    },
}

/// One step of the loss history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LossPoint {
    step: u64,
    epoch: u64,
    loss: f64,
}

impl Recorder {
    /// Records nothing: every rank but 0.
    pub fn none() -> Self {
        Self {
            metrics: None,
            curves: None,
            journal: None,
            history: None,
            losses: Vec::new(),
            evaluated: None,
        }
    }

    /// Goes on with `{run_dir}/metrics.jsonl` after step `done`: lines of later steps, which a run that ended without a
    /// checkpoint has left, are dropped, so that the file is that of a run which was never interrupted; and likewise with the
    /// curves in `{run_dir}/tensorboard`. With `history_dir`, also keeps a loss history there.
    ///
    /// # Errors
    /// When a file cannot be read or opened.
    pub fn create(
        run_dir: &Path,
        history_dir: Option<&Path>,
        done: u64,
    ) -> Result<Self, TrainError> {
        let path = run_dir.join("metrics.jsonl");
        let kept = keep_until(&path, done).map_err(|source| write_error(&path, source))?;
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        let file = open_own(&path, &options).map_err(|source| write_error(&path, source))?;
        if let Some(dir) = history_dir {
            std::fs::create_dir_all(dir).map_err(|source| write_error(dir, source))?;
        }
        Ok(Self {
            metrics: Some((path, Lines::new(file))),
            curves: unless_told(
                Curves::create(run_dir, done, now()),
                "there are no curves for TensorBoard",
            ),
            journal: unless_told(Journal::open(run_dir), "there is no events.jsonl"),
            history: history_dir.map(|dir| dir.join("loss_history.json")),
            losses: kept.losses,
            evaluated: kept.evaluated,
        })
    }

    /// Takes note of a step.
    ///
    /// # Errors
    /// When it cannot be a line.
    pub fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        if self.metrics.is_some() {
            self.line(metrics)?;
            if let Some(curves) = &mut self.curves {
                curves.step(metrics);
            }
            self.losses.push(LossPoint {
                step: metrics.step,
                epoch: metrics.epoch,
                loss: metrics.loss,
            });
        }
        Ok(())
    }

    /// Takes note of an evaluation; not of one that was made a second time, because the run was started again before it was
    /// saved.
    ///
    /// # Errors
    /// When it cannot be a line.
    pub fn evaluation(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        match self.evaluated.replace(metrics.step) {
            Some(step) if step == metrics.step => Ok(()),
            _ => {
                if let Some(curves) = &mut self.curves {
                    curves.evaluated(metrics, now());
                }
                self.line(metrics)
            }
        }
    }

    fn line(&mut self, metrics: &impl Serialize) -> Result<(), TrainError> {
        let Some((path, lines)) = &mut self.metrics else {
            return Ok(());
        };
        lines.add(&serde_json::to_string(metrics).map_err(|e| write_error(path, e.into()))?);
        Ok(())
    }

    /// Takes note of something that is no step.
    pub(crate) fn note(&mut self, happening: Happening<'_>) {
        if let Some(journal) = &mut self.journal {
            journal.note(happening);
        }
    }

    /// Writes the loss history, and what could not be written of the metrics before.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn finish(&mut self) -> Result<(), TrainError> {
        if let Some((path, lines)) = &mut self.metrics {
            lines.flush().map_err(|source| write_error(path, source))?;
        }
        let Some(path) = &self.history else {
            return Ok(());
        };
        let text = serde_json::to_string_pretty(&self.losses)
            .map_err(|error| write_error(path, error.into()))?;
        write_whole(path, text.as_bytes()).map_err(|source| write_error(path, source))
    }
}

/// What could be opened; else the user is told what is missing, and why.
fn unless_told<T>(opened: std::io::Result<T>, otherwise: &str) -> Option<T> {
    opened
        .inspect_err(|error| tracing::warn!(%error, "{otherwise} of this run"))
        .ok()
}

fn write_error(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::Write {
        path: path.to_owned(),
        source,
    }
}

/// What a run that goes on reads of its metrics: those of millions of steps.
const MAX_BYTES: u64 = 2 << 30;

/// What is left of the metrics of a run that goes on.
#[derive(Default)]
struct Kept {
    losses: Vec<LossPoint>,
    evaluated: Option<u64>,
}

/// Cuts the metrics of `path` after step `done`. Nothing is left of a run that begins again.
fn keep_until(path: &Path, done: u64) -> std::io::Result<Kept> {
    let bytes = match read_small(path, MAX_BYTES) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Kept::default()),
        bytes => bytes?,
    };
    let mut found = Kept::default();
    let mut kept = String::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        // The last line of a killed process may be cut off, and a crash of the machine may leave anything.
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        if done == 0 || !line.ends_with('\n') {
            continue;
        }
        match serde_json::from_str::<Line>(line) {
            Ok(Line::Step(point)) if point.step <= done => found.losses.push(point),
            Ok(Line::Evaluation { step, .. }) if step <= done => found.evaluated = Some(step),
            _ => continue,
        }
        kept.push_str(line);
    }
    if kept.len() < bytes.len() {
        write_whole(path, kept.as_bytes())?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_after_the_checkpoint_are_forgotten() {
        let folder = std::env::temp_dir().join(format!("tandem-recorder-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("metrics.jsonl");
        let line = |step| format!("{{\"step\":{step},\"epoch\":0,\"loss\":1.5,\"lr\":0.1}}\n");
        let cut = "{\"step\":4,\"epo";
        let mut bytes = [line(1), line(2), line(3), cut.to_owned()]
            .concat()
            .into_bytes();
        bytes.splice(line(1).len()..line(1).len(), *b"{\"step\":1,\"\xff\":1}\n");
        std::fs::write(&path, bytes).unwrap();
        let mut recorder = Recorder::create(&folder, Some(&folder), 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line(1) + &line(2));
        recorder.finish().unwrap();
        let history = std::fs::read_to_string(folder.join("loss_history.json")).unwrap();
        let steps: Vec<LossPoint> = serde_json::from_str(&history).unwrap();
        assert_eq!(steps.iter().map(|p| p.step).collect::<Vec<_>>(), [1, 2]);

        // Evaluations are lines of their own, which go with their steps and come once.
        let evaluation = |step, eval_loss| EvalMetrics {
            step,
            eval_loss,
            perplexity: 2.0,
            eval_tokens: 5,
            eval_seconds: 0.25,
        };
        recorder.evaluation(&evaluation(2, f64::NAN)).unwrap();
        recorder.evaluation(&evaluation(3, 0.5)).unwrap();
        drop(recorder);
        let of_two = "{\"step\":2,\"eval_loss\":null,\"perplexity\":2.0,\"eval_tokens\":5,\"eval_seconds\":0.25}\n";
        let expected = line(1) + &line(2) + of_two;
        let mut recorder = Recorder::create(&folder, None, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        recorder.evaluation(&evaluation(2, 0.5)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        drop(Recorder::create(&folder, None, 0).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
