//! Tasks of a Slurm job step (`srun`).

use super::hostlist::expand_hostlist;
use super::variables::{Variables, invalid, require};
use super::{EnvError, Launcher, Names, RendezvousSecret, WorkerEnv};

/// Step numbers from here up are not srun's: Slurm uses them for the batch script, interactive and extern steps
/// (`SLURM_BATCH_SCRIPT` and its neighbours in slurm.h).
const FIRST_SPECIAL_STEP: u64 = 0xffff_fff0;

/// Derived ports start here, above the ports that services like to use ...
const FIRST_PORT: u64 = 10_000;
/// ... and end below 32768, where Linux starts to hand out ephemeral ports.
const PORTS: u64 = 20_000;

/// What to do where variables of a job have come to a process that srun did not start.
const NOT_A_TASK: &str = "srun sets both, so this process is none of its tasks, and nobody has started the other ranks. Start the \
    workers with srun; or, to let this process start them, unset SLURM_PROCID";

const REMEDY: &str = "start the workers with srun, which sets it";

pub(super) fn detect(variables: &Variables<'_>) -> Result<Option<WorkerEnv>, EnvError> {
    if !in_step(variables)? {
        return Ok(None);
    }
    let Some(rank) = variables.number("SLURM_PROCID")? else {
        return Ok(None);
    };
    // A step smaller than the allocation has its own count.
    let world_size = match variables.size("SLURM_STEP_NUM_TASKS")? {
        Some(tasks) => Some(tasks),
        None => variables.size("SLURM_NTASKS")?,
    };
    let world_size = match world_size {
        // One task is how Slurm runs any program: the program may well want to start workers itself.
        None | Some(1) => return Ok(None),
        Some(tasks) => tasks,
    };
    // What leaks into a shell, a container or a screen session is the batch script's, which is number 0.
    if rank == 0 && variables.number("SLURM_STEP_ID")?.is_none() {
        return require(None, "SLURM_STEP_ID", "SLURM_PROCID", NOT_A_TASK);
    }
    let local_rank = require(
        variables.number("SLURM_LOCALID")?,
        "SLURM_LOCALID",
        "SLURM_PROCID",
        REMEDY,
    )?;
    let hosts = hosts(variables)?;
    let tasks_on_node = tasks_per_node(variables, hosts.len(), world_size)?;
    let node_rank = node_rank(variables, rank, &tasks_on_node)?;
    let Some(&local_world_size) = tasks_on_node.get(node_rank) else {
        return Err(EnvError::Contradiction {
            variable: "SLURM_NODEID",
            value: node_rank.to_string(),
            other: "SLURM_NODELIST",
            other_value: hosts.join(","),
            rule: "a node's number is smaller than the number of nodes",
        });
    };
    let master_addr = match variables.text("MASTER_ADDR")? {
        Some(address) => address,
        None => hosts[0].clone(),
    };
    let master_port = match variables.port("MASTER_PORT")? {
        Some(port) => port,
        None => derived_port(variables)?,
    };
    let secret = RendezvousSecret::read(
        variables,
        &["SLURM_JOB_ID", "SLURM_STEP_ID"],
        world_size,
        master_port,
    )?;
    WorkerEnv {
        rank,
        world_size,
        local_rank,
        local_world_size,
        node_rank,
        master_addr,
        master_port,
        master_fd: None,
        beside_agent: false,
        secret,
        source: Launcher::Slurm,
    }
    .validated(&Names {
        rank: "SLURM_PROCID",
        world_size: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_world_size: "SLURM_NTASKS_PER_NODE",
    })
    .map(Some)
}

/// Whether this process is a task of srun. A batch script has `SLURM_PROCID=0` and the job's `SLURM_NTASKS` too, but
/// nobody started the other ranks.
fn in_step(variables: &Variables<'_>) -> Result<bool, EnvError> {
    match variables.number("SLURM_STEP_ID")? {
        Some(step) => Ok((step as u64) < FIRST_SPECIAL_STEP),
        None => Ok(variables.text("ENVIRONMENT")?.as_deref() != Some("BATCH")),
    }
}

fn hosts(variables: &Variables<'_>) -> Result<Vec<String>, EnvError> {
    for name in [
        "SLURM_STEP_NODELIST",
        "SLURM_NODELIST",
        "SLURM_JOB_NODELIST",
    ] {
        if let Some(list) = variables.text(name)? {
            return expand_hostlist(&list)
                .map_err(|error| invalid(name, &list, &format!("a host list: {}", error.problem)));
        }
    }
    require(None, "SLURM_NODELIST", "SLURM_PROCID", REMEDY)
}

/// Tasks on each node. `SLURM_STEP_TASKS_PER_NODE` is exact; `SLURM_NTASKS_PER_NODE` is what was asked for.
fn tasks_per_node(
    variables: &Variables<'_>,
    nodes: usize,
    world_size: usize,
) -> Result<Vec<usize>, EnvError> {
    for name in ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"] {
        let Some(text) = variables.text(name)? else {
            continue;
        };
        let tasks = expand_repetitions(&text)
            .ok_or_else(|| invalid(name, &text, "counts such as 4(x2),3"))?;
        // The job's own list does not describe a smaller step: use it only where it fits.
        if tasks.len() == nodes && tasks.iter().sum::<usize>() == world_size {
            return Ok(tasks);
        }
        if name == "SLURM_STEP_TASKS_PER_NODE" {
            return Err(EnvError::Contradiction {
                variable: name,
                value: text,
                other: "SLURM_NTASKS",
                other_value: format!("{world_size} on {nodes} nodes"),
                rule: "the tasks of all nodes add up to the tasks of the step",
            });
        }
    }
    if let Some(each) = variables.size("SLURM_NTASKS_PER_NODE")?
        && each * nodes == world_size
    {
        return Ok(vec![each; nodes]);
    }
    if nodes == 1 {
        return Ok(vec![world_size]);
    }
    if variables.is_set("SLURM_TASKS_PER_NODE") || variables.is_set("SLURM_NTASKS_PER_NODE") {
        let variable = if variables.is_set("SLURM_TASKS_PER_NODE") {
            "SLURM_TASKS_PER_NODE"
        } else {
            "SLURM_NTASKS_PER_NODE"
        };
        return Err(EnvError::Contradiction {
            variable,
            value: variables.text(variable)?.unwrap_or_default(),
            other: "SLURM_NTASKS",
            other_value: format!("{world_size} on {nodes} nodes"),
            rule: "the tasks of all nodes add up to the tasks of the step",
        });
    }
    require(
        None,
        "SLURM_TASKS_PER_NODE",
        "SLURM_NTASKS",
        "pass --ntasks-per-node to srun, so that every rank knows its neighbours",
    )
}

/// `4(x2),3` is 4, 4, 3.
fn expand_repetitions(text: &str) -> Option<Vec<usize>> {
    let mut counts = Vec::new();
    for part in text.split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        let count: usize = count.trim().parse().ok()?;
        if count == 0 || times > 1 << 20 {
            return None;
        }
        counts.extend(std::iter::repeat_n(count, times));
    }
    Some(counts)
}

fn node_rank(
    variables: &Variables<'_>,
    rank: usize,
    tasks_on_node: &[usize],
) -> Result<usize, EnvError> {
    if let Some(node) = variables.number("SLURM_NODEID")? {
        return Ok(node);
    }
    // Without a node number, assume Slurm's default block distribution: ranks fill node after node.
    let mut first_of_next = 0;
    for (node, tasks) in tasks_on_node.iter().enumerate() {
        first_of_next += tasks;
        if rank < first_of_next {
            return Ok(node);
        }
    }
    Err(EnvError::Contradiction {
        variable: "SLURM_PROCID",
        value: rank.to_string(),
        other: "SLURM_NTASKS",
        other_value: first_of_next.to_string(),
        rule: "a rank is smaller than the number of ranks",
    })
}

/// The same port on every rank and, most likely, another one for any other job or step on the same host.
fn derived_port(variables: &Variables<'_>) -> Result<u16, EnvError> {
    let job = require(
        variables.number("SLURM_JOB_ID")?,
        "SLURM_JOB_ID",
        "SLURM_PROCID",
        "the rendezvous port is derived from it; set MASTER_PORT if it is not there",
    )? as u64;
    let step = variables.number("SLURM_STEP_ID")?.unwrap_or(0) as u64;
    // Neighbouring jobs' steps must not meet: 61 steps of one job pass before the next job's first port repeats.
    let offset = job.wrapping_mul(61).wrapping_add(step) % PORTS;
    u16::try_from(FIRST_PORT + offset)
        .map_err(|_| invalid("SLURM_JOB_ID", &job.to_string(), "a job number"))
}
