//! `run.json` in the run's folder: what the run is doing, and the history of its attempts, for people and tools.
//!
//! It is replaced by rename, so a reader never sees half of it. Attempts of earlier controllers in the same folder are
//! kept: a resumed experiment has one history.

use super::run_lock::{MAX_FILE_BYTES, host_name};
use super::{LaunchSpec, RunFailure, RunState};
use crate::env::RUN_DIR;
use crate::output::redacted;
use crate::process_table::{ProcessId, was_started_with};
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tandem_files::{PartialFile, read_small};

const FILE_NAME: &str = "run.json";
const VERSION: u32 = 1;

/// More attempts than anybody reads; a run that is restarted for ever must not grow its file for ever.
const MAX_ATTEMPTS: usize = 500;

/// How long a killed orphan may take to vanish.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(5);

/// The file's content and place.
#[derive(Debug)]
pub(super) struct RunRecord {
    path: PathBuf,
    file: RecordFile,
}

#[derive(Debug, Serialize, Deserialize)]
struct RecordFile {
    version: u32,
    state: RunState,
    /// Why the run is in this state, where it is not obvious.
    reason: Option<String>,
    controller_pid: u32,
    host: String,
    program: String,
    args: Vec<String>,
    /// What the program says of itself.
    #[serde(default)]
    facts: BTreeMap<String, String>,
    num_workers: usize,
    max_failures: i64,
    /// Failures since the last progress.
    failures: u32,
    started_at: String,
    updated_at: String,
    ended_at: Option<String>,
    last_step: Option<u64>,
    last_checkpoint: Option<String>,
    attempts: Vec<AttemptRecord>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct AttemptRecord {
    /// `TANDEM_ATTEMPT`: counted from 0 by each controller.
    attempt: u32,
    controller_pid: u32,
    host: String,
    /// By rank.
    workers: Vec<ProcessId>,
    started_at: String,
    ended_at: Option<String>,
    outcome: Option<String>,
    reason: Option<String>,
}

impl RunRecord {
    /// The record of a new controller, after the attempts of earlier ones. The second value is a warning when those
    /// cannot be read.
    pub(super) fn begin(spec: &LaunchSpec) -> Result<(Self, Option<String>), RunFailure> {
        let path = Self::path_in(&spec.run_dir);
        let (earlier, warning) = match read(&path) {
            Ok(earlier) => (earlier, None),
            Err(error) => {
                let text = format!(
                    "starting a new history: cannot read {}: {error}",
                    path.display()
                );
                (None, Some(text))
            }
        };
        let (last_step, last_checkpoint, attempts) = match earlier {
            Some(file) => (file.last_step, file.last_checkpoint, file.attempts),
            None => (None, None, Vec::new()),
        };
        let record = Self {
            path,
            file: RecordFile {
                version: VERSION,
                state: RunState::Initializing,
                reason: None,
                controller_pid: std::process::id(),
                host: host_name(),
                program: spec.program.display().to_string(),
                args: spec
                    .args
                    .iter()
                    .map(|arg| redacted(&arg.to_string_lossy()).into_owned())
                    .collect(),
                facts: spec.facts.clone(),
                num_workers: spec.num_workers,
                max_failures: spec.max_failures,
                failures: 0,
                started_at: now(),
                updated_at: now(),
                ended_at: None,
                last_step,
                last_checkpoint,
                attempts,
            },
        };
        record
            .save()
            .map_err(RunFailure::setup("write run.json in the run's folder"))?;
        Ok((record, warning))
    }

    /// Whether the run is over, as far as the file says.
    pub(super) fn is_over(&self) -> bool {
        self.file.state.is_final()
    }

    pub(super) fn path_in(run_dir: &Path) -> PathBuf {
        run_dir.join(FILE_NAME)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn enter(&mut self, state: RunState, reason: Option<String>, failures: u32) {
        self.file.state = state;
        self.file.reason = reason.map(|text| redacted(&text).into_owned());
        self.file.failures = failures;
        self.file.updated_at = now();
        if state.is_final() {
            self.file.ended_at = Some(now());
        }
    }

    pub(super) fn begin_attempt(&mut self, attempt: u32, pids: &[u32]) {
        let gone = ProcessId {
            pid: 0,
            start_ticks: 0,
        };
        let excess = (self.file.attempts.len() + 1).saturating_sub(MAX_ATTEMPTS);
        self.file.attempts.drain(..excess);
        self.file.attempts.push(AttemptRecord {
            attempt,
            controller_pid: std::process::id(),
            host: host_name(),
            workers: pids
                .iter()
                .map(|pid| ProcessId::of(*pid).unwrap_or(ProcessId { pid: *pid, ..gone }))
                .collect(),
            started_at: now(),
            ended_at: None,
            outcome: None,
            reason: None,
        });
    }

    pub(super) fn end_attempt(&mut self, outcome: &str, reason: Option<String>) {
        // An attempt whose workers could not be started has no entry, and the one before has its end already.
        if let Some(attempt) = self.file.attempts.last_mut()
            && attempt.ended_at.is_none()
        {
            attempt.ended_at = Some(now());
            attempt.outcome = Some(outcome.to_owned());
            attempt.reason = reason.map(|text| redacted(&text).into_owned());
        }
    }

    pub(super) fn last_step(&mut self, step: u64) {
        self.file.last_step = Some(step);
    }

    pub(super) fn last_checkpoint(&mut self, name: &str) {
        self.file.last_checkpoint = Some(name.to_owned());
        self.file.updated_at = now();
    }

    /// Replaces the file.
    pub(super) fn save(&self) -> io::Result<()> {
        // The lock sees to it that there is no other writer.
        let mut file = PartialFile::create(&self.path)?;
        file.write_all(&serde_json::to_vec_pretty(&self.file)?)?;
        file.write_all(b"\n")?;
        file.finish()
    }

    /// Kills workers that an earlier controller on this host left behind, and returns their process ids.
    ///
    /// A process is taken for a worker only if its start time and the run's folder in its environment agree: a process id
    /// alone may long belong to somebody else.
    pub(super) fn end_orphans(&mut self, run_dir: &Path) -> Result<Vec<u32>, RunFailure> {
        let host = host_name();
        let orphans: Vec<ProcessId> = self
            .file
            .attempts
            .iter()
            .filter(|attempt| attempt.ended_at.is_none() && attempt.host == host)
            .flat_map(|attempt| &attempt.workers)
            .filter(|worker| worker.is_alive())
            .filter(|worker| was_started_with(worker.pid, RUN_DIR, run_dir.as_os_str()))
            .copied()
            .collect();
        self.end_attempt("lost", Some("the controller died".to_owned()));
        for orphan in &orphans {
            if let Some(group) = i32::try_from(orphan.pid).ok().and_then(Pid::from_raw) {
                // It may die by itself at this very moment.
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        let deadline = Instant::now() + ORPHAN_TIMEOUT;
        while orphans.iter().any(|orphan| orphan.is_alive()) {
            if Instant::now() >= deadline {
                let pids = orphans.iter().map(|orphan| orphan.pid).collect();
                return Err(RunFailure::WorkersLeft { pids });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(orphans.iter().map(|orphan| orphan.pid).collect())
    }
}

/// State, reason and last step of the file at `path`, which may be of another version.
pub(super) fn summary(path: &Path) -> Option<(RunState, Option<String>, Option<u64>)> {
    #[derive(Deserialize)]
    struct Summary {
        state: RunState,
        #[serde(default)]
        reason: Option<String>,
        #[serde(default)]
        last_step: Option<u64>,
    }
    let found: Summary = serde_json::from_slice(&read_small(path, MAX_FILE_BYTES).ok()?).ok()?;
    Some((found.state, found.reason, found.last_step))
}

fn read(path: &Path) -> io::Result<Option<RecordFile>> {
    match read_small(path, MAX_FILE_BYTES) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn now() -> String {
    format!("{:.3}", Timestamp::now())
}
