//! What the controller tells the program around it.

use super::{Failure, LockOwner, WorkerExit};
use crate::exit_code;
use crate::protocol::{Metrics, WorkerEvent};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Something that happened.
#[derive(Debug, Clone)]
pub enum ControllerEvent {
    /// The run entered a state.
    StateChanged {
        /// The new state.
        state: RunState,
    },
    /// A worker process was started.
    WorkerStarted {
        /// Its rank.
        rank: usize,
        /// Its process id.
        pid: u32,
    },
    /// A worker said something on its control socket.
    Worker {
        /// Its rank.
        rank: usize,
        /// What it said.
        event: WorkerEvent,
    },
    /// A worker process is gone.
    WorkerExited {
        /// Its rank.
        rank: usize,
        /// How it ended.
        exit: WorkerExit,
    },
    /// The workers failed, all of them are gone, and new ones start after `delay`.
    Restarting {
        /// Why.
        failure: Box<Failure>,
        /// Failures since the last progress, this one included.
        failures: u32,
        /// The pause before the new start.
        delay: Duration,
    },
    /// A signal asked to stop.
    StopRequested {
        /// Which.
        signal: StopSignal,
        /// Whether the workers may finish their step and save.
        graceful: bool,
    },
    /// The run's folder belonged to a controller that died.
    LockTakenOver {
        /// The dead owner.
        owner: LockOwner,
    },
    /// Something the user should know, with no effect on the run.
    Warning {
        /// One sentence.
        text: String,
    },
}

/// Ray Train's names for what a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RunState {
    /// The controller prepares the run's folder.
    Initializing,
    /// Workers are being started.
    Scheduling,
    /// Workers are training.
    Running,
    /// Workers failed and are gone; a new start follows.
    Restarting,
    /// The end: a failure that is not restarted.
    Errored,
    /// The end: training is done.
    Finished,
    /// The end: somebody asked to stop.
    Aborted,
}

impl RunState {
    /// Whether nothing follows it.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Errored | Self::Finished | Self::Aborted)
    }
}

/// A run's end that is not a failure.
#[derive(Debug, Clone, PartialEq)]
pub enum RunEnd {
    /// Training is done.
    Finished {
        /// The last values of rank 0.
        metrics: Metrics,
    },
    /// The workers saved and stopped; starting again continues.
    StoppedAfterSaving {
        /// The signal that asked for it; none when the workers stopped by themselves.
        signal: Option<StopSignal>,
    },
    /// The workers were ended without saving.
    Aborted {
        /// The signal that asked for it.
        signal: StopSignal,
    },
}

/// A signal that asks the controller to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGINT, as sent by Ctrl-C.
    Interrupt,
    /// SIGTERM, as sent by batch systems before they take a machine away.
    Terminate,
    /// SIGHUP, as sent when a terminal is closed or a connection drops.
    HangUp,
}

impl RunEnd {
    /// The controller's exit code, from the table in [`exit_code`].
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Finished { .. } => exit_code::OK,
            Self::StoppedAfterSaving { .. } => exit_code::STOPPED_AFTER_SAVING,
            Self::Aborted { signal } => exit_code::for_signal(signal.signal()),
        }
    }
}

impl StopSignal {
    fn signal(self) -> Signal {
        match self {
            Self::Interrupt => Signal::INT,
            Self::Terminate => Signal::TERM,
            Self::HangUp => Signal::HUP,
        }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::HangUp => "SIGHUP",
        })
    }
}
