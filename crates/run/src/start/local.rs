//! Running workers on this machine: this program again, once per rank, under the local controller.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem_launch::controller::{Controller, ControllerEvent, LaunchSpec, RunEnd};

use crate::failure::{Failure, Outcome};
use crate::libtorch::Libtorch;
use crate::limits;
use crate::show::screen;

/// How patiently workers are looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supervision {
    /// Failures without progress in between that are followed by a restart; -1 is no limit.
    pub max_failures: i64,
    /// Silence of all workers that counts as a hang; zero never.
    pub hang_timeout: Duration,
    /// Whether workers can save when they are asked to stop.
    pub graceful_stop: bool,
}

impl Supervision {
    /// For a job that keeps no state.
    pub const NONE: Self = Self {
        max_failures: 0,
        hang_timeout: Duration::from_secs(600),
        graceful_stop: false,
    };
}

/// Starts `num_workers` copies of this program with `args` and looks after them. Returns the exit code.
pub fn run_workers(
    libtorch: Libtorch,
    args: &[OsString],
    num_workers: usize,
    run_dir: &Path,
    env: &[(&str, OsString)],
    supervision: Supervision,
    on_event: &mut dyn FnMut(&ControllerEvent),
) -> Outcome<i32> {
    limits::check_all(num_workers)?;
    let mut spec = LaunchSpec::new(own_file()?, args, num_workers, run_dir);
    spec.env = env
        .iter()
        .map(|(name, value)| (OsString::from(name), value.clone()))
        .collect();
    spec.facts = [("libtorch".to_owned(), libtorch.describe())].into();
    spec.max_failures = supervision.max_failures;
    spec.hang_timeout = supervision.hang_timeout;
    spec.graceful_stop = supervision.graceful_stop;
    match Controller::run(&spec, on_event) {
        Ok(outcome) => {
            match &outcome {
                RunEnd::Aborted { signal } => screen::last_line(&format!("stopped by {signal}")),
                RunEnd::StoppedAfterSaving { .. } => screen::last_line("stopped after saving"),
                RunEnd::Finished { .. } => {}
            }
            Ok(outcome.exit_code())
        }
        Err(failure) => Err(Failure {
            exit_code: failure.exit_code(),
            ..Failure::other(failure)
        }),
    }
}

/// The file of this program.
pub fn own_file() -> Outcome<PathBuf> {
    std::env::current_exe()
        .map_err(|error| Failure::other(format!("cannot find this program's own file: {error}")))
}
