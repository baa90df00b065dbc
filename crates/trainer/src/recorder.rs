//! Metrics on disk: `metrics.jsonl`, a line a step, and the loss history.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::TrainError;
use crate::events::StepMetrics;

/// Writes what rank 0 records of a run.
pub struct Recorder {
    metrics: Option<(PathBuf, File)>,
    history: Option<PathBuf>,
    losses: Vec<LossPoint>,
}

/// One step of the loss history.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
            history: None,
            losses: Vec::new(),
        }
    }

    /// Appends to `{run_dir}/metrics.jsonl`; with `history_dir`, also keeps a loss history there.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn create(run_dir: &Path, history_dir: Option<&Path>) -> Result<Self, TrainError> {
        let path = run_dir.join("metrics.jsonl");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| write_error(&path, source))?;
        if let Some(dir) = history_dir {
            std::fs::create_dir_all(dir).map_err(|source| write_error(dir, source))?;
        }
        Ok(Self {
            metrics: Some((path, file)),
            history: history_dir.map(|dir| dir.join("loss_history.json")),
            losses: Vec::new(),
        })
    }

    /// Takes note of a step.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        let Some((path, file)) = &mut self.metrics else {
            return Ok(());
        };
        let mut line = serde_json::to_string(metrics).map_err(|e| write_error(path, e.into()))?;
        line.push('\n');
        // One write per line: whoever follows the file never sees half of one.
        file.write_all(line.as_bytes())
            .map_err(|source| write_error(path, source))?;
        self.losses.push(LossPoint {
            step: metrics.step,
            epoch: metrics.epoch,
            loss: metrics.loss,
        });
        Ok(())
    }

    /// Writes the loss history.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(&self) -> Result<(), TrainError> {
        let Some(path) = &self.history else {
            return Ok(());
        };
        let text = serde_json::to_string_pretty(&self.losses)
            .map_err(|error| write_error(path, error.into()))?;
        let partial = path.with_extension("json.partial");
        std::fs::write(&partial, text).map_err(|source| write_error(&partial, source))?;
        std::fs::rename(&partial, path).map_err(|source| write_error(path, source))
    }
}

fn write_error(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::Write {
        path: path.to_owned(),
        source,
    }
}
