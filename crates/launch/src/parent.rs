//! Workers that do not outlive the process that started them.

use crate::env::{CONTROLLER_PID, Lookup};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::io;

/// Why a worker must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// The parent died before this process could ask to be told.
    #[error(
        "the controller (process {expected}) that started this worker is gone; its parent is process {found} now"
    )]
    Gone {
        /// The process in `TANDEM_CONTROLLER_PID`.
        expected: i32,
        /// The parent.
        found: i32,
    },
    /// The variable holds no process id.
    #[error("the environment variable {CONTROLLER_PID} is {0:?}; it must be a process id")]
    NotAPid(String),
    /// The kernel refused.
    #[error("cannot ask the kernel for a signal at the parent's death: {0}")]
    Kernel(#[source] io::Error),
}

/// Asks the kernel to end this process with SIGKILL when its parent dies, then checks that the parent is still the
/// one in `TANDEM_CONTROLLER_PID`. Does nothing without that variable: no controller, nothing to follow.
///
/// Call it first in a worker's `main`, before any work and any thread. Linux sends the signal when the *thread* that
/// started the worker ends; the controller starts workers from the thread that runs it.
///
/// SIGKILL, because every weaker signal leaves a stopped or deaf worker alive with a whole model in memory.
///
/// # Errors
/// [`ParentError`]; the worker should exit with code 1.
pub fn die_with_parent(lookup: &Lookup<'_>) -> Result<(), ParentError> {
    let Some(text) = lookup(CONTROLLER_PID) else {
        return Ok(());
    };
    let expected: i32 = text
        .trim()
        .parse()
        .map_err(|_| ParentError::NotAPid(text))?;
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| ParentError::Kernel(errno.into()))?;
    // A parent that died before the line above sends no signal: only this look notices.
    let found = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if found == expected {
        Ok(())
    } else {
        Err(ParentError::Gone { expected, found })
    }
}

#[cfg(test)]
mod tests {
    use super::{ParentError, die_with_parent};

    #[test]
    fn without_a_controller_there_is_nothing_to_follow() {
        die_with_parent(&|_| None).unwrap();
    }

    #[test]
    fn a_variable_that_is_no_process_is_an_error() {
        let error = die_with_parent(&|_| Some("me".into())).unwrap_err();
        assert!(matches!(error, ParentError::NotAPid(_)), "{error}");
    }
}
