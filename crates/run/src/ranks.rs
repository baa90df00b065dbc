//! A rank among the others: meeting them, and the groups of the mesh.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use tandem_comm::{ProcessGroup, RunSecret, World, WorldConfig, broadcast_bytes};
use tandem_files::read_small_text;
use tandem_launch::env::{RENDEZVOUS_SECRET, RendezvousSecret, WorkerEnv};
use tandem_launch::tell;
use tandem_tensor::{Device, DeviceChoice, memory};
use tandem_trainer::ExpertRanks;

use crate::failure::{Failure, Outcome};
use crate::libtorch::{Libtorch, workers};
use crate::limits;
use crate::spec::{EngineSpec, Network};

/// A rank's connections.
pub struct Ranks {
    /// The rendezvous, and who is alive.
    pub world: World,
    /// All ranks.
    pub everyone: Arc<dyn ProcessGroup>,
    /// This rank's row.
    pub tp: Arc<dyn ProcessGroup>,
    /// This rank's column.
    pub dp: Arc<dyn ProcessGroup>,
    /// Where experts are spread over ranks, these.
    pub experts: Option<ExpertRanks>,
    /// Where this rank computes.
    pub device: Device,
    /// What it computes with.
    pub libtorch: Libtorch,
}

impl Ranks {
    /// Meets the other ranks and builds the groups of the mesh.
    pub fn join(env: &WorkerEnv, spec: &EngineSpec, network: &Network) -> Outcome<Self> {
        let mesh = spec.mesh;
        if env.world_size != mesh.world_size() {
            return Err(Failure::usage(format!(
                "--tp_size x --dp_size is {}, but the launcher started {} workers (WORLD_SIZE)",
                mesh.world_size(),
                env.world_size
            )));
        }
        limits::check_own(env)?;
        // A worker looks at its own device only.
        let workers = workers(env.local_world_size, network.transport);
        let libtorch = Libtorch::ready(DeviceChoice::Auto, workers)?;
        let device = spec
            .device
            .select(env.local_rank, workers)
            .map_err(|error| Failure::usage(error.to_string()))?;
        limit_threads(env.local_world_size);
        memory::keep_freed();
        let waiting = Waiting::begin(env);
        let connect = if env.beside_agent {
            World::connect_beside_agent
        } else {
            World::connect
        };
        let world = connect(&WorldConfig {
            rank: env.rank,
            world_size: env.world_size,
            local_rank: env.local_rank,
            local_world_size: env.local_world_size,
            master_addr: env.master_addr.clone(),
            master_port: env.master_port,
            master_fd: env.master_fd,
            secret: secret(env, network)?,
            timeout: Duration::from_secs(spec.comm_timeout_s),
            network_interface: network.network_interface.clone(),
            transport: network.transport,
        })
        .map_err(Failure::comm)?;
        drop(waiting);
        let all: Vec<usize> = (0..mesh.world_size()).collect();
        let group = |name: &str, ranks: &[usize]| {
            world
                .new_device_group(name, ranks, device)
                .map_err(Failure::comm)
        };
        let size = spec.expert_parallel_size;
        let experts = match size {
            1 => None,
            _ => Some(ExpertRanks {
                group: group("ep", &mesh.expert_group(env.rank, size))?,
                replicas: group("edp", &mesh.expert_replicas(env.rank, size))?,
            }),
        };
        Ok(Self {
            experts,
            everyone: group("world", &all)?,
            tp: group("tp", &mesh.tp_group(env.rank))?,
            dp: group("dp", &mesh.dp_group(env.rank))?,
            world,
            device,
            libtorch,
        })
    }

    /// Rank 0's text, on every rank.
    pub fn text_of_first(&self, own: &str) -> Outcome<String> {
        let bytes = broadcast_bytes(self.everyone.as_ref(), own.as_bytes(), 0, self.device)
            .map_err(Failure::comm)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns when all ranks have called it.
    pub fn barrier(&self) -> Outcome<()> {
        self.everyone
            .barrier()
            .and_then(|work| work.wait())
            .map_err(Failure::comm)
    }
}

/// The most bytes that a file with a secret may have.
const LONGEST_SECRET: u64 = 4096;

/// The secret in the file that the user names.
pub fn secret_in(path: &Path) -> Outcome<RunSecret> {
    let whose = || format!("--rendezvous_secret_file {}", path.display());
    let text = read_small_text(path, LONGEST_SECRET).map_err(|error| unusable(whose(), &error))?;
    RunSecret::from_text(&text).map_err(|error| unusable(whose(), &error))
}

fn unusable(whose: String, problem: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!(
        "{whose} cannot be used as the ranks' secret: {problem}"
    ))
}

/// What the ranks prove to each other that they know.
fn secret(env: &WorkerEnv, network: &Network) -> Outcome<RunSecret> {
    if let Some(path) = &network.rendezvous_secret_file {
        return secret_in(path);
    }
    match &env.secret {
        RendezvousSecret::Given(text) => RunSecret::from_text(text)
            .map_err(|error| unusable(format!("the variable {RENDEZVOUS_SECRET}"), &error)),
        RendezvousSecret::Derived(known) => {
            if env.rank == 0 && env.world_size > 1 {
                tell!(
                    "warning: the ranks have no secret, so whoever reaches their ports could take part in the run; give all \
                     of them one in {RENDEZVOUS_SECRET} or with --rendezvous_secret_file"
                );
            }
            Ok(RunSecret::guessable(known))
        }
    }
}

/// How long a rank waits for the others before it says so.
const WAITING: Duration = Duration::from_secs(10);

/// Says once, after a while, what this rank waits for: that may be ranks which nobody starts.
struct Waiting {
    /// Nothing is ever sent: the other end is told by the drop.
    _met: Sender<()>,
}

impl Waiting {
    fn begin(env: &WorkerEnv) -> Self {
        let (met, heard) = mpsc::channel::<()>();
        let place = format!("{}:{}", env.master_addr, env.master_port);
        let (size, source) = (env.world_size, env.source);
        let wait = move || {
            if let Err(RecvTimeoutError::Timeout) = heard.recv_timeout(WAITING) {
                tracing::warn!(
                    "still waiting for the others of {size} ranks at {place}; the environment says that {source:?} starts \
                     them all: check that it does"
                );
            }
        };
        // Without it, only the words are missing.
        let _ = std::thread::Builder::new()
            .name("waiting".to_owned())
            .spawn(wait);
        Self { _met: met }
    }
}

/// Ranks of one host share its cores: libtorch's and our own threads together are one per core.
fn limit_threads(local_world_size: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / local_world_size.max(1)).max(1);
    tandem_tensor::device::set_threads(threads);
}
