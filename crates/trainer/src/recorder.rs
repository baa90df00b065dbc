//! Metrics on disk: `metrics.jsonl`, a line a step, and the loss history.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tandem_files::write_whole;

use crate::error::TrainError;
use crate::events::StepMetrics;

/// Writes what rank 0 records of a run.
pub struct Recorder {
    metrics: Option<(PathBuf, File)>,
    history: Option<PathBuf>,
    losses: Vec<LossPoint>,
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
            history: None,
            losses: Vec::new(),
        }
    }

    /// Goes on with `{run_dir}/metrics.jsonl` after step `done`: lines of later steps, which a run that ended without a
    /// checkpoint has left, are dropped, so that the file is that of a run which was never interrupted. With
    /// `history_dir`, also keeps a loss history there.
    ///
    /// # Errors
    /// When a file cannot be read or opened.
    pub fn create(
        run_dir: &Path,
        history_dir: Option<&Path>,
        done: u64,
    ) -> Result<Self, TrainError> {
        let path = run_dir.join("metrics.jsonl");
        let losses = keep_until(&path, done).map_err(|source| write_error(&path, source))?;
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
            losses,
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
        write_whole(path, text.as_bytes()).map_err(|source| write_error(path, source))
    }
}

fn write_error(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::Write {
        path: path.to_owned(),
        source,
    }
}

/// Cuts the metrics of `path` after step `done`, and returns the losses of what is left.
fn keep_until(path: &Path, done: u64) -> std::io::Result<Vec<LossPoint>> {
    let bytes = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        // Opening a pipe that somebody has put there would wait for ever.
        Ok(found) if !found.is_file() => {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        _ => std::fs::read(path)?,
    };
    let mut losses = Vec::new();
    let mut kept = String::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        // The last line of a killed process may be cut off, and a crash of the machine may leave anything.
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        match serde_json::from_str::<LossPoint>(line) {
            Ok(point) if point.step <= done && line.ends_with('\n') => {
                losses.push(point);
                kept.push_str(line);
            }
            _ => {}
        }
    }
    if kept.len() < bytes.len() {
        write_whole(path, kept.as_bytes())?;
    }
    Ok(losses)
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
        let recorder = Recorder::create(&folder, Some(&folder), 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line(1) + &line(2));
        recorder.finish().unwrap();
        let history = std::fs::read_to_string(folder.join("loss_history.json")).unwrap();
        let steps: Vec<LossPoint> = serde_json::from_str(&history).unwrap();
        assert_eq!(steps.iter().map(|p| p.step).collect::<Vec<_>>(), [1, 2]);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
