//! How a command ends when it does not end well.

use tandem_comm::CommError;
use tandem_launch::exit_code;
use tandem_launch::output::OutputError;
use tandem_trainer::TrainError;

/// A message for the user and the exit code that goes with it.
#[derive(Debug)]
pub struct Failure {
    /// What was wrong, where, and what to do.
    pub message: String,
    /// See [`tandem_launch::exit_code`].
    pub exit_code: i32,
    /// Another rank's failure caused this one.
    pub secondary: bool,
    /// The optimizer step in which it happened, where there was one.
    pub step: Option<u64>,
}

impl Failure {
    /// The command line asks for something that cannot be.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            exit_code: exit_code::USAGE,
            secondary: false,
            step: None,
        }
    }

    /// A collective failed: that is another rank's doing.
    pub fn comm(error: CommError) -> Self {
        Self {
            secondary: error.is_secondary(),
            ..Self::other(error)
        }
    }

    /// Training ended.
    pub fn train(error: TrainError) -> Self {
        Self {
            secondary: error.comm_error().is_some_and(CommError::is_secondary),
            ..Self::other(error)
        }
    }

    /// The same failure, in optimizer step `step`.
    pub fn at_step(self, step: u64) -> Self {
        Self {
            step: (step > 0).then_some(step),
            ..self
        }
    }

    /// Anything else.
    pub fn other(error: impl std::fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            exit_code: exit_code::FAILURE,
            secondary: false,
            step: None,
        }
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        Self::other(error)
    }
}

/// What a command returns.
pub type Outcome<T> = Result<T, Failure>;
