//! The part that a process plays in a run: controller or worker.

use tandem_launch::client::ControlClient;
use tandem_launch::env::WorkerEnv;

/// What this process is.
pub enum Role {
    /// Started by a person: starts workers.
    Controller,
    /// Started by a launcher.
    Worker {
        /// Its rank, and where the others are.
        env: WorkerEnv,
        /// Its controller, if it has one that listens.
        control: ControlClient,
    },
}
