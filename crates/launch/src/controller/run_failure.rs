//! Why a run did not end well.

use super::{Failure, LockError, SpecError};
use crate::exit_code;
use std::io;
use std::path::PathBuf;

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunFailure {
    /// The controller was asked for something impossible.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The run's folder cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The system refused something that the controller needs.
    #[error("the controller cannot {action}: {source}")]
    Setup {
        /// What it tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A worker process could not be started.
    #[error("cannot start worker {rank} ({}): {source}", program.display())]
    Start {
        /// The worker's rank.
        rank: usize,
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The workers failed, and are not started again.
    #[error("{failure}{}", gave_up(*failures, *max_failures))]
    Workers {
        /// The last attempt's failure.
        failure: Box<Failure>,
        /// Failures since the last progress.
        failures: u32,
        /// The limit.
        max_failures: i64,
    },
    /// Workers did not go away, not even by SIGKILL: the kernel holds them, as it does while a disk does not answer.
    #[error(
        "processes {pids:?} did not end within seconds of SIGKILL; \
         look at their state with ps, and start again when they are gone"
    )]
    WorkersLeft {
        /// Their ids.
        pids: Vec<u32>,
    },
}

impl RunFailure {
    /// The controller's exit code, from the table in [`exit_code`].
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Spec(_) => exit_code::USAGE,
            Self::Workers { failure, .. } if !failure.may_pass() => exit_code::USAGE,
            _ => exit_code::FAILURE,
        }
    }

    pub(super) fn setup(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Setup { action, source }
    }
}

/// Says that restarts were tried; with the default of none there is nothing to explain.
fn gave_up(failures: u32, max_failures: i64) -> String {
    if failures <= 1 {
        return String::new();
    }
    format!(
        "\nThis was failure {failures} without progress in between; --max_failures {max_failures} allows no more."
    )
}
