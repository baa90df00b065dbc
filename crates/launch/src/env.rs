//! The rank, sizes and rendezvous address that a launcher gave this process.
//!
//! The environment is passed in as a function, so that nothing here depends on global state and every launcher can
//! be tested in one process. The order is: torchrun's variables (also set by the local controller, the Ray shim and
//! Kubernetes' PyTorchJob), then Slurm, then Open MPI. Variables that are incomplete or contradict each other are
//! errors that name the variable: guessing a rank would hang every other rank.

mod hostlist;
mod open_mpi;
mod secret;
mod slurm;
mod torchrun;
mod variables;

pub use hostlist::{HostlistError, expand_hostlist};
pub use secret::{RENDEZVOUS_SECRET, RendezvousSecret};
use variables::Variables;

/// Name of the variable that tells rank 0 which inherited file descriptor is the already listening rendezvous socket.
pub const MASTER_FD: &str = "TANDEM_MASTER_FD";
/// Name of the variable with the path of the control socket.
pub const CONTROL: &str = "TANDEM_CONTROL";
/// Name of the variable with the process id that a worker must not outlive.
pub const CONTROLLER_PID: &str = "TANDEM_CONTROLLER_PID";
/// Name of the variable with the attempt's number, 0 for the first start and one more at each restart.
pub const ATTEMPT: &str = "TANDEM_ATTEMPT";
/// Name of the variable with the run's folder.
pub const RUN_DIR: &str = "TANDEM_RUN_DIR";
/// Name of the variable with the newest checkpoint on the supervisor's record, empty for none. Where it is set, the
/// supervisor keeps the list of checkpoints and deletes old ones, and the worker does not.
pub const CHECKPOINT: &str = "TANDEM_CHECKPOINT";

/// Looks up one environment variable. [`process_environment`] is the real one.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What a launcher told this worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerEnv {
    /// This worker's number in the whole run, `0..world_size`.
    pub rank: usize,
    /// Workers in the whole run.
    pub world_size: usize,
    /// This worker's number on its host, `0..local_world_size`.
    pub local_rank: usize,
    /// Workers on this host.
    pub local_world_size: usize,
    /// This host's number, 0 for the host of rank 0.
    pub node_rank: usize,
    /// Host name or address where rank 0 listens for the rendezvous.
    pub master_addr: String,
    /// Port where rank 0 listens for the rendezvous.
    pub master_port: u16,
    /// On rank 0 under the local controller: the inherited descriptor of a TCP socket that already listens on
    /// `master_port`. Taking it over, instead of binding the port, leaves no moment in which another process could
    /// take the port.
    pub master_fd: Option<i32>,
    /// The launcher's own store listens on `master_port` (torchrun's agent), so rank 0 takes a port after it.
    pub beside_agent: bool,
    /// The secret that the ranks prove to each other to know.
    pub secret: RendezvousSecret,
    /// Whose variables these are.
    pub source: Launcher,
}

/// Whose environment variables described the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// `RANK`, `WORLD_SIZE`, ...: torchrun, the local controller, the Ray shim, Kubernetes' PyTorchJob.
    Torchrun,
    /// `SLURM_*` of a task in a Slurm job step.
    Slurm,
    /// `OMPI_COMM_WORLD_*` of mpirun.
    OpenMpi,
}

/// Why the environment cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A variable that the others call for is not set.
    #[error("the environment variable {variable} is not set, but {present} is: {remedy}")]
    Missing {
        /// The missing variable.
        variable: &'static str,
        /// The variable that made it necessary.
        present: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A variable does not hold what it should.
    #[error("the environment variable {variable} is {value:?}; it must be {expected}")]
    Invalid {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// Two variables cannot both be right.
    #[error(
        "the environment variable {variable} is {value}, which contradicts {other} = {other_value}: {rule}"
    )]
    Contradiction {
        /// The first variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// The variable it contradicts.
        other: &'static str,
        /// That one's value.
        other_value: String,
        /// The rule that they break.
        rule: &'static str,
    },
}

impl WorkerEnv {
    /// Finds out which launcher, if any, started this process as a worker.
    ///
    /// `None` means that no launcher did: the process was started by a person and should start workers itself.
    ///
    /// # Errors
    /// [`EnvError`] when a launcher's variables are incomplete, malformed or contradict each other.
    pub fn detect(lookup: &Lookup<'_>) -> Result<Option<Self>, EnvError> {
        let variables = Variables::new(lookup);
        let has_rank = variables.is_set("RANK");
        if has_rank || variables.is_set("LOCAL_RANK") && variables.is_set("WORLD_SIZE") {
            return torchrun::detect(&variables).map(Some);
        }
        let found = match slurm::detect(&variables)? {
            Some(worker) => Some(worker),
            None => open_mpi::detect(&variables)?,
        };
        torchrun::check_world_size(&variables, found.as_ref())?;
        Ok(found)
    }

    fn validated(self, names: &Names) -> Result<Self, EnvError> {
        let contradiction = |variable, value: usize, other, other_value: usize, rule| {
            Err(EnvError::Contradiction {
                variable,
                value: value.to_string(),
                other,
                other_value: other_value.to_string(),
                rule,
            })
        };
        if self.rank >= self.world_size {
            return contradiction(
                names.rank,
                self.rank,
                names.world_size,
                self.world_size,
                "a rank is smaller than the number of ranks",
            );
        }
        if self.local_rank >= self.local_world_size {
            return contradiction(
                names.local_rank,
                self.local_rank,
                names.local_world_size,
                self.local_world_size,
                "a local rank is smaller than the number of ranks on the host",
            );
        }
        if self.local_world_size > self.world_size {
            return contradiction(
                names.local_world_size,
                self.local_world_size,
                names.world_size,
                self.world_size,
                "a host cannot hold more ranks than there are",
            );
        }
        if self.local_rank > self.rank {
            return contradiction(
                names.local_rank,
                self.local_rank,
                names.rank,
                self.rank,
                "ranks are numbered host by host, so a local rank cannot exceed the rank",
            );
        }
        Ok(self)
    }
}

/// The variable names to blame, for checks that all launchers share.
struct Names {
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    local_world_size: &'static str,
}

/// The real environment of this process. A value that is not Unicode counts as not set.
#[must_use]
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
