//! What a fake worker is told to do, shared by the program and the tests that start it.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A worker's life.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Script {
    /// Steps until training is done. A step is a pause and a progress event.
    pub steps: u64,
    pub step_ms: u64,
    /// Rank 0 writes and reports a checkpoint after every so many steps; 0 never. Attempts continue from it.
    pub checkpoint_every: u64,
    pub fault: Option<Fault>,
    /// Whether the other ranks notice the fault at once and report secondary errors.
    pub peers_notice: bool,
    /// Load for ever, deaf to the command `stop`, as a worker is that waits for others.
    pub never_trains: bool,
    /// Ignore SIGTERM.
    pub deaf: bool,
    /// Ignore the command `stop`.
    pub stubborn: bool,
    /// Rank 0 starts a child of its own, which only the process group can reach.
    pub with_child: bool,
    /// Do not ask the kernel to die with the parent.
    pub outlives_parent: bool,
}

/// Something that goes wrong on one rank before one step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    pub rank: usize,
    pub step: u64,
    /// By how many steps it comes later in each further attempt.
    pub later_each_attempt: u64,
    /// It happens in attempts below this number only.
    pub attempts: u32,
    pub kind: FaultKind,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FaultKind {
    /// Report an error and exit with the code.
    Error {
        message: String,
        exit_code: i32,
    },
    /// Exit without a word.
    Exit {
        code: i32,
    },
    Panic,
    /// Kill itself with a signal.
    Signal {
        number: i32,
    },
    /// Stop itself, as SIGSTOP from outside would.
    Stop,
    /// Never do anything again.
    Hang,
}

/// How a controller in a process of its own is set up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControllerScript {
    pub run_dir: PathBuf,
    pub num_workers: usize,
    pub graceful_stop: bool,
    pub stop_grace_ms: u64,
    pub max_failures: i64,
    pub backoff_ms: u64,
    pub worker: Script,
}
