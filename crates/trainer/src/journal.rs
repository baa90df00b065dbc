//! `events.jsonl`: what happened to a run besides its steps, a line each, with the time. It is the history of all starts, so
//! nothing of it is ever taken back.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tandem_files::open_own;

use crate::events::SavedCheckpoint;

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Happening<'a> {
    /// Training starts, perhaps not for the first time.
    Started {
        /// Steps that were done before.
        step: u64,
        /// The last one.
        last_step: u64,
        /// Processes.
        ranks: usize,
        /// Floating point operations per second of all devices, of which MFU is a fraction.
        peak_flops: f64,
        /// Whose peak that is.
        peak_of: &'a str,
    },
    /// There is a checkpoint.
    Saved {
        /// Steps that it holds.
        step: u64,
        /// Its folder.
        name: &'a str,
        /// From beginning to end.
        seconds: f64,
        /// For how much of it training waited.
        blocked_s: f64,
    },
    /// A save came to nothing.
    SaveFailed {
        /// Steps that it would have held.
        step: u64,
        /// Which ranks, and why.
        problem: &'a str,
    },
    /// Training is over.
    Ended {
        /// Steps that are done.
        step: u64,
        /// Whether it was asked to stop.
        stopped: bool,
    },
}

impl<'a> Happening<'a> {
    pub fn saved(saved: &'a SavedCheckpoint) -> Self {
        Self::Saved {
            step: saved.step,
            name: &saved.name,
            seconds: saved.seconds,
            blocked_s: saved.blocked_s,
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: f64,
    #[serde(flatten)]
    happening: Happening<'a>,
}

/// The file.
pub(crate) struct Journal {
    path: PathBuf,
    /// None after a write that failed.
    file: Option<File>,
}

impl Journal {
    /// Goes on with the file of `run_dir`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join("events.jsonl");
        let mut options = OpenOptions::new();
        options.create(true).append(true).read(true);
        let mut file = open_own(&path, &options)?;
        if ends_within_a_line(&mut file)? {
            file.write_all(b"\n")?;
        }
        Ok(Self {
            path,
            file: Some(file),
        })
    }

    /// Takes note of something. It is for people: what cannot be written ends no run.
    pub fn note(&mut self, happening: Happening<'_>) {
        let Some(file) = &mut self.file else {
            return;
        };
        let line = Line {
            time: now(),
            happening,
        };
        let written = serde_json::to_string(&line)
            .map_err(io::Error::from)
            .and_then(|line| file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            let path = self.path.display();
            tracing::warn!(%error, "cannot write {path}: the history of the run ends here");
            self.file = None;
        }
    }
}

/// Whether whoever wrote last was killed before the end of its line.
fn ends_within_a_line(file: &mut File) -> io::Result<bool> {
    use std::io::{Read, Seek, SeekFrom};
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_several_starts_follow_each_other_even_after_a_torn_one() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join("events.jsonl");
        let ended = |step| Happening::Ended {
            step,
            stopped: true,
        };
        Journal::open(run.path()).unwrap().note(ended(3));
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"time\":")).unwrap();
        Journal::open(run.path()).unwrap().note(ended(5));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Option<serde_json::Value>> = text
            .lines()
            .map(|line| serde_json::from_str(line).ok())
            .collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].is_none(), "{text}");
        for (line, step) in [(&lines[0], 3), (&lines[2], 5)] {
            let line = line.as_ref().unwrap();
            assert_eq!(
                (&line["event"], &line["step"]),
                (&"ended".into(), &step.into())
            );
            assert!(line["time"].as_f64().unwrap() > 1e9, "{line}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(Journal::open(run.path()).is_err());
    }
}
