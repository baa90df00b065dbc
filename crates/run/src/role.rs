//! What a process of a run is.

use tandem_launch::client::ControlClient;
use tandem_launch::env::WorkerEnv;

/// What this process is.
pub enum Role {
    /// Started by a person: starts workers.
    Controller,
    /// Started by a launcher.
    Worker {
        /// Who it is.
        env: WorkerEnv,
        /// Its controller, if it has one that listens.
        control: ControlClient,
    },
}
