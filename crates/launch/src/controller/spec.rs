//! What to run and how patiently.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Everything the controller needs to know.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// The worker program.
    pub program: PathBuf,
    /// Its arguments, the same for every rank.
    pub args: Vec<OsString>,
    /// Workers to start.
    pub num_workers: usize,
    /// Variables to add to the controller's own environment. The contract's variables (`RANK`, ...) win over them.
    pub env: Vec<(OsString, OsString)>,
    /// The run's folder, on a local or shared file system.
    pub run_dir: PathBuf,
    /// Failures without progress in between that are followed by a restart; -1 is no limit.
    pub max_failures: i64,
    /// The group is stuck when no rank gives a sign of life for this long; zero never.
    pub hang_timeout: Duration,
    /// Pauses before restarts.
    pub backoff: Backoff,
    /// Whether the first SIGINT or SIGTERM lets the workers finish their step and save (`true`) or ends them.
    pub graceful_stop: bool,
    /// How long a graceful stop may take before the workers are ended.
    pub stop_grace: Duration,
    /// What else `run.json` tells, such as the library that computes.
    pub facts: BTreeMap<String, String>,
}

/// Exponentially growing pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The pause after the first failure since the last progress; it doubles with every further one ...
    pub initial: Duration,
    /// ... up to this.
    pub max: Duration,
}

/// Why a [`LaunchSpec`] cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// There would be nobody to do the work.
    #[error("num_workers is 0; it must be at least 1")]
    NoWorkers,
    /// Only -1 means no limit.
    #[error("max_failures is {0}; it must be 0 or more, or -1 for no limit")]
    MaxFailures(i64),
    /// Clocks overflow some time after this.
    #[error("{name} is {seconds} s; it must be at most a year ({YEAR_S} s)")]
    TooLong {
        /// The field.
        name: &'static str,
        /// Its value.
        seconds: u64,
    },
}

const YEAR_S: u64 = 365 * 24 * 3600;

impl LaunchSpec {
    /// A run with the defaults: no restart, 600 s until a hang, pauses from 0.5 s to 60 s, and a graceful stop of at
    /// most 120 s.
    #[must_use]
    pub fn new(
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = impl Into<OsString>>,
        num_workers: usize,
        run_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            num_workers,
            env: Vec::new(),
            run_dir: run_dir.into(),
            max_failures: 0,
            hang_timeout: Duration::from_secs(600),
            backoff: Backoff {
                initial: Duration::from_millis(500),
                max: Duration::from_secs(60),
            },
            graceful_stop: true,
            stop_grace: Duration::from_secs(120),
            facts: BTreeMap::new(),
        }
    }

    pub(super) fn validate(&self) -> Result<(), SpecError> {
        if self.num_workers == 0 {
            return Err(SpecError::NoWorkers);
        }
        if self.max_failures < -1 {
            return Err(SpecError::MaxFailures(self.max_failures));
        }
        let times = [
            ("hang_timeout", self.hang_timeout),
            ("backoff.max", self.backoff.max),
            ("stop_grace", self.stop_grace),
        ];
        for (name, time) in times {
            let seconds = time.as_secs();
            if seconds > YEAR_S {
                return Err(SpecError::TooLong { name, seconds });
            }
        }
        Ok(())
    }
}

impl Backoff {
    /// The pause after `failures` failures in a row.
    #[must_use]
    pub fn after(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.initial.saturating_mul(1 << doublings).min(self.max)
    }
}
