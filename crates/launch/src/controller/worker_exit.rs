//! How a worker process ended, in words.

use crate::exit_code;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How a worker process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerExit {
    /// It exited.
    Code(i32),
    /// A signal killed it.
    Signal {
        /// The signal's number.
        signal: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
}

impl WorkerExit {
    /// Whether this is one of the two ends that are no failure: success, and a stop after saving.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(
            self,
            Self::Code(exit_code::OK | exit_code::STOPPED_AFTER_SAVING)
        )
    }
}

impl From<ExitStatus> for WorkerExit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (None, Some(signal)) => Self::Signal {
                signal,
                core_dumped: status.core_dumped(),
            },
            (code, _) => Self::Code(code.unwrap_or(exit_code::FAILURE)),
        }
    }
}

impl fmt::Display for WorkerExit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(101) => formatter.write_str("exit code 101 (a Rust panic)"),
            Self::Code(code) => write!(formatter, "exit code {code}"),
            Self::Signal {
                signal,
                core_dumped,
            } => {
                match signal_hook::low_level::signal_name(*signal) {
                    Some(name) => write!(formatter, "killed by {name}")?,
                    None => write!(formatter, "killed by signal {signal}")?,
                }
                match *signal {
                    signal_hook::consts::SIGKILL => {
                        formatter.write_str(" (perhaps out of memory)")?
                    }
                    signal_hook::consts::SIGBUS => {
                        formatter.write_str(" (perhaps shared memory or a disk is full)")?;
                    }
                    _ => {}
                }
                if *core_dumped {
                    formatter.write_str(", core dumped")?;
                }
                Ok(())
            }
        }
    }
}
