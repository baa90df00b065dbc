//! What the ranks of a run have in common and strangers do not.

use std::fmt;

use super::EnvError;
use super::variables::Variables;

/// Name of the variable with the run's secret.
pub const RENDEZVOUS_SECRET: &str = "TANDEM_RENDEZVOUS_SECRET";

/// Where the secret of a run comes from. Whoever reads it decides what a secret must be like.
#[derive(Clone, PartialEq, Eq)]
pub enum RendezvousSecret {
    /// From [`RENDEZVOUS_SECRET`], which a supervisor or the user has set.
    Given(String),
    /// The variable is not set. This is what tells runs apart and all ranks know: the port, the number of ranks, and the
    /// launcher's name for the job, where it has one. It can be guessed.
    Derived(String),
}

impl RendezvousSecret {
    /// `job` are the variables in which the launcher names the job, on every rank alike.
    pub(super) fn read(
        variables: &Variables<'_>,
        job: &[&'static str],
        world_size: usize,
        master_port: u16,
    ) -> Result<Self, EnvError> {
        if let Some(given) = variables.text(RENDEZVOUS_SECRET)? {
            return Ok(Self::Given(given));
        }
        // Not the address: one rank may know rank 0's host by another name than the next, and rank 0 itself as localhost.
        let mut known = format!("{master_port} {world_size}");
        for name in job {
            // What is empty tells nothing apart.
            if let Ok(Some(value)) = variables.text(name) {
                known += &format!(" {name}={value}");
            }
        }
        Ok(Self::Derived(known))
    }
}

/// Nothing that is printed shows it.
impl fmt::Debug for RendezvousSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given(..)"),
            Self::Derived(known) => f.debug_tuple("Derived").field(known).finish(),
        }
    }
}
