//! Running workers on this machine: this program again, once per rank, under the local controller.

use std::ffi::OsString;
use std::path::Path;

use tandem_launch::controller::{Controller, ControllerEvent, LaunchSpec, Outcome as RunOutcome};

use crate::failure::{Failure, Outcome};

/// Starts `num_workers` copies of this program with this process's own arguments and looks after them. Returns the
/// exit code.
pub fn run_workers(
    num_workers: usize,
    run_dir: &Path,
    env: &[(&str, OsString)],
    on_event: &mut dyn FnMut(&ControllerEvent),
) -> Outcome<i32> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::other(format!("cannot find this program's own file: {error}")))?;
    let mut spec = LaunchSpec::new(program, std::env::args_os().skip(1), num_workers, run_dir);
    spec.env = env
        .iter()
        .map(|(name, value)| (OsString::from(name), value.clone()))
        .collect();
    // Until checkpoints can be written there is nothing to stop gracefully for.
    spec.graceful_stop = false;
    match Controller::run(&spec, on_event) {
        Ok(outcome) => {
            if let RunOutcome::Aborted { signal } = &outcome {
                eprintln!("stopped by {signal}");
            }
            Ok(outcome.exit_code())
        }
        Err(failure) => Err(Failure {
            exit_code: failure.exit_code(),
            ..Failure::other(failure)
        }),
    }
}
