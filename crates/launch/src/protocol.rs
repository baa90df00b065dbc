//! What workers and their controller say to each other: one JSON object a line over a Unix stream socket.
//!
//! `PROTOCOL.md` beside this crate's manifest describes it for other languages. Both sides ignore what they do not
//! know and warn about it, so that either may be newer than the other.

mod line;
mod metrics;

pub use line::{LineError, MAX_LINE_BYTES, Parsed, encode, parse_command, parse_event};
pub use metrics::Metrics;

use serde::{Deserialize, Serialize};

/// The protocol's version, sent in [`WorkerEvent::Hello`]. It grows when a reader of the older version would misunderstand
/// a message; new fields and new events do not need it.
pub const VERSION: u32 = 1;

/// A worker's message to its controller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WorkerEvent {
    /// The first message on a connection: who speaks. Messages before it are ignored.
    Hello {
        /// The worker's rank.
        rank: usize,
        /// The worker's process id.
        pid: u32,
        /// [`VERSION`].
        version: u32,
    },
    /// The worker entered a phase, such as `loading`, `tokenizing`, `training`, `saving`. A long phase may repeat the
    /// message: every one counts as progress for the hang watch.
    Phase {
        /// The phase, one lower-case word.
        name: String,
    },
    /// An optimizer step ended.
    Progress {
        /// Optimizer steps done since the start of training, over all attempts.
        step: u64,
        /// The epoch, counted from 0.
        epoch: u64,
        /// Named values, such as `loss`.
        metrics: Metrics,
    },
    /// Something to show to the user.
    Message {
        /// How important it is.
        level: Level,
        /// One or more lines.
        text: String,
    },
    /// What Ray Train calls a report: metrics, with a checkpoint that is committed to storage by now.
    Report {
        /// Named values.
        metrics: Metrics,
        /// The checkpoint's folder inside the run's folder; none when only metrics are reported.
        checkpoint_dir_name: Option<String>,
    },
    /// The worker failed and is about to exit.
    Error {
        /// The rank that failed.
        rank: usize,
        /// The optimizer step that it was in, where there was one.
        step: Option<u64>,
        /// What went wrong, for the user.
        message: String,
        /// Whether the failure only follows from another rank's ("rank 3 left"). Such errors are shown below others.
        secondary: bool,
        /// The exit code that the worker is about to use.
        exit_code: i32,
    },
    /// Training ended as it should, and the worker is about to exit with code 0.
    Done {
        /// Final values.
        metrics: Metrics,
    },
}

/// The name of the [phase](WorkerEvent::Phase) in which a worker trains. Before it, there is nothing that a stop could save.
pub const PHASE_TRAINING: &str = "training";

/// The importance of [`WorkerEvent::Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// For developers.
    Debug,
    /// Good to know.
    Info,
    /// Something may be wrong.
    Warning,
    /// Something is wrong, but the worker goes on.
    Error,
}

/// The controller's message to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Finish the step, save, and exit with [`STOPPED_AFTER_SAVING`](crate::exit_code::STOPPED_AFTER_SAVING). Ranks get it at
    /// different moments and must agree on the step among themselves.
    Stop,
    /// Save a checkpoint after this step and go on.
    SaveNow,
}
