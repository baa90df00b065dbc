//! Processes of Open MPI's `mpirun`. Only its environment is used: nothing links MPI.

use super::variables::{Variables, require};
use super::{EnvError, Launcher, Names, RendezvousSecret, WorkerEnv};

/// Values that mpirun makes unique for each job: `OMPI_MCA_ess_base_jobid` up to Open MPI 4, PMIx's namespace from 5.
const JOB_NAMES: [&str; 2] = ["OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE"];

const FIRST_PORT: u64 = 10_000;
const PORTS: u64 = 20_000;

const REMEDY: &str = "start the workers with mpirun, which sets it";

pub(super) fn detect(variables: &Variables<'_>) -> Result<Option<WorkerEnv>, EnvError> {
    const RANK: &str = "OMPI_COMM_WORLD_RANK";
    const SIZE: &str = "OMPI_COMM_WORLD_SIZE";
    const LOCAL_RANK: &str = "OMPI_COMM_WORLD_LOCAL_RANK";
    const LOCAL_SIZE: &str = "OMPI_COMM_WORLD_LOCAL_SIZE";
    let Some(rank) = variables.number(RANK)? else {
        return match variables.is_set(SIZE) {
            true => require(None, RANK, SIZE, REMEDY),
            false => Ok(None),
        };
    };
    let world_size = require(variables.size(SIZE)?, SIZE, RANK, REMEDY)?;
    let local_rank = require(variables.number(LOCAL_RANK)?, LOCAL_RANK, RANK, REMEDY)?;
    let local_world_size = require(variables.size(LOCAL_SIZE)?, LOCAL_SIZE, RANK, REMEDY)?;
    let master_addr = match variables.text("MASTER_ADDR")? {
        Some(address) => address,
        None if local_world_size == world_size => "127.0.0.1".to_owned(),
        None => {
            return require(
                None,
                "MASTER_ADDR",
                SIZE,
                "the ranks are on several hosts and mpirun does not say where rank 0 is; \
                 pass -x MASTER_ADDR=<host of rank 0> to mpirun",
            );
        }
    };
    let master_port = match variables.port("MASTER_PORT")? {
        Some(port) => port,
        None => derived_port(variables)?,
    };
    let secret = RendezvousSecret::read(variables, &JOB_NAMES, world_size, master_port)?;
    WorkerEnv {
        rank,
        world_size,
        local_rank,
        local_world_size,
        // Open MPI has no variable for the host's number; by default it fills host after host.
        node_rank: rank.saturating_sub(local_rank) / local_world_size,
        master_addr,
        master_port,
        master_fd: None,
        beside_agent: false,
        secret,
        source: Launcher::OpenMpi,
    }
    .validated(&Names {
        rank: RANK,
        world_size: SIZE,
        local_rank: LOCAL_RANK,
        local_world_size: LOCAL_SIZE,
    })
    .map(Some)
}

fn derived_port(variables: &Variables<'_>) -> Result<u16, EnvError> {
    for name in JOB_NAMES {
        if let Some(job) = variables.text(name)? {
            // The remainder is below 20 000, so the sum fits.
            return Ok((FIRST_PORT + fnv1a(job.as_bytes()) % PORTS) as u16);
        }
    }
    require(
        None,
        "MASTER_PORT",
        "OMPI_COMM_WORLD_RANK",
        "mpirun gave no job number to derive a port from; pass -x MASTER_PORT=<free port> to mpirun",
    )
}

/// Fowler, Noll and Vo's hash (FNV-1a, 64 bits): the same on every host and in every build, unlike std's hashers.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
