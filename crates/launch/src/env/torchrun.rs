//! torchrun's contract: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`.
//!
//! Kubernetes' PyTorchJob sets only the global ones, one process to a pod. The node's number is torchrun's
//! `GROUP_RANK`, or `NODE_RANK`.

use super::variables::{Variables, require};
use super::{EnvError, Launcher, MASTER_FD, Names, RendezvousSecret, WorkerEnv};

const REMEDY: &str = "set all of RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, \
                      as torchrun does, or none of them";

pub(super) fn detect(variables: &Variables<'_>) -> Result<WorkerEnv, EnvError> {
    let rank = require(variables.number("RANK")?, "RANK", "LOCAL_RANK", REMEDY)?;
    let world_size = require(variables.size("WORLD_SIZE")?, "WORLD_SIZE", "RANK", REMEDY)?;
    let (local_rank, local_world_size) = match (
        variables.number("LOCAL_RANK")?,
        variables.size("LOCAL_WORLD_SIZE")?,
    ) {
        (Some(local_rank), Some(size)) => (local_rank, size),
        (None, None) => (0, 1),
        (None, Some(_)) => {
            return require(None, "LOCAL_RANK", "LOCAL_WORLD_SIZE", REMEDY);
        }
        (Some(_), None) => {
            return require(None, "LOCAL_WORLD_SIZE", "LOCAL_RANK", REMEDY);
        }
    };
    let master_addr = require(
        variables.text("MASTER_ADDR")?,
        "MASTER_ADDR",
        "RANK",
        REMEDY,
    )?;
    let master_port = require(
        variables.port("MASTER_PORT")?,
        "MASTER_PORT",
        "RANK",
        REMEDY,
    )?;
    let node_rank = match variables.number("GROUP_RANK")? {
        Some(node_rank) => Some(node_rank),
        None => variables.number("NODE_RANK")?,
    };
    let master_fd = variables.number(MASTER_FD)?;
    let secret =
        RendezvousSecret::read(variables, &["TORCHELASTIC_RUN_ID"], world_size, master_port)?;
    WorkerEnv {
        rank,
        world_size,
        local_rank,
        local_world_size,
        // Ranks are numbered host by host; with equally full hosts the division is exact.
        node_rank: node_rank.unwrap_or(rank.saturating_sub(local_rank) / local_world_size),
        master_addr,
        master_port,
        master_fd: master_fd.and_then(|fd| i32::try_from(fd).ok()),
        beside_agent: variables.text("TORCHELASTIC_USE_AGENT_STORE")?.as_deref() == Some("True"),
        secret,
        source: Launcher::Torchrun,
    }
    .validated(&Names {
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_world_size: "LOCAL_WORLD_SIZE",
    })
}

/// Batch scripts often export `WORLD_SIZE` and leave the ranks to Slurm or MPI. That is welcome when both agree, and
/// a mistake when nothing gives the rank.
pub(super) fn check_world_size(
    variables: &Variables<'_>,
    found: Option<&WorkerEnv>,
) -> Result<(), EnvError> {
    let Some(world_size) = variables.size("WORLD_SIZE")? else {
        return Ok(());
    };
    let Some(worker) = found else {
        return require(None, "RANK", "WORLD_SIZE", REMEDY);
    };
    if worker.world_size == world_size {
        return Ok(());
    }
    Err(EnvError::Contradiction {
        variable: "WORLD_SIZE",
        value: world_size.to_string(),
        other: match worker.source {
            Launcher::Slurm => "SLURM_NTASKS",
            Launcher::OpenMpi | Launcher::Torchrun => "OMPI_COMM_WORLD_SIZE",
        },
        other_value: worker.world_size.to_string(),
        rule: "both count the ranks of the run",
    })
}
