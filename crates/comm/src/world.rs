//! All ranks of a run.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tandem_tensor::Device;

use crate::collective::{Collective, Site};
use crate::error::{CommError, Result};
use crate::group::ProcessGroup;
use crate::health::{Fate, Health};
use crate::membership;
use crate::observe::Observer;
use crate::rendezvous;
use crate::single::SingleGroup;
use crate::store::{Client, Server};

/// Who this rank is and where it meets the others: torchrun's variables, and a few choices.
#[derive(Debug, Clone)]
pub struct WorldConfig {
    /// This process, `0..world_size` (`RANK`).
    pub rank: usize,
    /// All processes (`WORLD_SIZE`).
    pub world_size: usize,
    /// This process among those of its host (`LOCAL_RANK`).
    pub local_rank: usize,
    /// Processes of this host (`LOCAL_WORLD_SIZE`). They share its cores.
    pub local_world_size: usize,
    /// Host name or IPv4 or IPv6 address of rank 0 (`MASTER_ADDR`).
    pub master_addr: String,
    /// Port on which rank 0 listens (`MASTER_PORT`).
    pub master_port: u16,
    /// On rank 0, a descriptor of a socket that listens there already (`TANDEM_MASTER_FD`); it is taken over.
    pub master_fd: Option<i32>,
    /// How long any rank may take to answer before the others give up.
    pub timeout: Duration,
    /// The interface whose address other hosts should use; otherwise the one on the way to rank 0.
    pub network_interface: Option<String>,
    /// How groups move data.
    pub transport: Transport,
}

/// How the members of a group on CPUs move data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Shared memory where the members can share it, otherwise TCP.
    #[default]
    Auto,
    /// Shared memory; an error where it cannot be had.
    Shm,
    /// TCP, even within one host.
    Tcp,
}

/// The connection of this rank to the whole run.
///
/// Dropping it says goodbye: other ranks that still wait for this one get an error, all others do not mind. A process that
/// ends without dropping it has failed in the eyes of the others, who then give up whatever they wait for.
pub struct World {
    pub(crate) config: WorldConfig,
    pub(crate) health: Arc<Health>,
    pub(crate) observer: Arc<OnceLock<Arc<dyn Observer>>>,
    /// `None` in a world of one.
    pub(crate) meeting_point: Option<Arc<MeetingPoint>>,
    /// How many groups of a name and membership were created.
    generations: Mutex<HashMap<String, u64>>,
}

/// The connections behind a world of more than one rank.
pub(crate) struct MeetingPoint {
    pub(crate) client: Client,
    /// On rank 0. Dropped after the client, whose end it would otherwise take for a failure.
    server: Option<Server>,
    /// Where other hosts reach this rank.
    pub(crate) address: IpAddr,
}

impl MeetingPoint {
    pub(crate) fn end(&self, fate: Fate) {
        match &self.server {
            Some(server) => server.end(fate),
            None => self.client.end(fate),
        }
    }
}

impl World {
    /// Meets all other ranks. Returns when everybody is there.
    ///
    /// # Errors
    /// [`CommError::Listen`] or [`CommError::Rendezvous`], saying what to check.
    pub fn connect(config: &WorldConfig) -> Result<Self> {
        Self::connect_at(config, &rendezvous::ports(config.master_port, false))
    }

    /// As [`World::connect`], where another service owns `master_port`.
    ///
    /// torchrun's agent does (it says so with `TORCHELASTIC_USE_AGENT_STORE=True`). Rank 0 then takes the first free one
    /// of the 16 ports after it, and the others look for it there.
    ///
    /// # Errors
    /// As [`World::connect`].
    pub fn connect_beside_agent(config: &WorldConfig) -> Result<Self> {
        Self::connect_at(config, &rendezvous::ports(config.master_port, true))
    }

    fn connect_at(config: &WorldConfig, ports: &[u16]) -> Result<Self> {
        let health = Arc::new(Health::new(config.timeout));
        let failed = |reason: String| CommError::Rendezvous {
            rank: config.rank,
            address: format!("{}:{}", config.master_addr, config.master_port),
            reason,
        };
        if config.rank >= config.world_size {
            return Err(failed(format!(
                "there is no rank {} among {} ranks",
                config.rank, config.world_size
            )));
        }
        let mut meeting_point = None;
        if config.world_size > 1 {
            let server = if config.rank == 0 {
                let listener = rendezvous::listen(config, ports)?;
                let server = Server::start(listener, config.world_size)
                    .map_err(|error| failed(format!("the store could not start: {error}")))?;
                Some(server)
            } else {
                None
            };
            let own_listener = server.as_ref().map(Server::address).transpose();
            let own_listener =
                own_listener.map_err(|error| failed(format!("no local address: {error}")))?;
            let client = rendezvous::connect(config, ports, own_listener, &health)?;
            let site = Site {
                collective: Collective::NewGroup,
                sequence: 0,
                group: "all ranks".into(),
                step: None,
            };
            if let Err(missing) = client.wait_for_all(config.world_size, &site)? {
                return Err(failed(format!(
                    "ranks {missing:?} did not come within {} s; check that they were started",
                    config.timeout.as_secs_f64()
                )));
            }
            let address = rendezvous::own_address(config, &client, server.as_ref())?;
            meeting_point = Some(Arc::new(MeetingPoint {
                client,
                server,
                address,
            }));
        }
        Ok(Self {
            config: config.clone(),
            health,
            observer: Arc::default(),
            meeting_point,
            generations: Mutex::default(),
        })
    }

    /// This process, `0..size`.
    pub fn rank(&self) -> usize {
        self.config.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.config.world_size
    }

    /// This process's address, as other hosts see it.
    pub fn address(&self) -> IpAddr {
        self.meeting_point
            .as_ref()
            .map_or(Ipv4Addr::LOCALHOST.into(), |point| point.address)
    }

    /// Makes a group of `ranks` (world ranks, this one among them) for tensors in host memory.
    ///
    /// All members must call it, with the same arguments; groups of the same name and members are told apart by the order
    /// in which each member creates them.
    ///
    /// # Errors
    /// [`CommError::Invalid`] for ranks that make no group, [`CommError::SharedMemory`], or whatever happens to a peer.
    pub fn new_group(&self, name: &str, ranks: &[usize]) -> Result<Arc<dyn ProcessGroup>> {
        self.new_device_group(name, ranks, Device::Cpu)
    }

    /// As [`World::new_group`], for tensors on `device`: host memory, or this rank's CUDA device.
    ///
    /// # Errors
    /// As [`World::new_group`], and [`CommError::Device`] when CUDA or NCCL cannot be had.
    pub fn new_device_group(
        &self,
        name: &str,
        ranks: &[usize],
        device: Device,
    ) -> Result<Arc<dyn ProcessGroup>> {
        if !matches!(device, Device::Cpu | Device::Cuda(_)) {
            return Err(CommError::Invalid {
                collective: Collective::NewGroup,
                group: name.into(),
                reason: format!("there are no collectives on {device:?}; use the CPU or CUDA"),
            });
        }
        let member = self.validate_members(name, ranks)?;
        let Some(meeting_point) = self.meeting_point.as_ref().filter(|_| ranks.len() > 1) else {
            return Ok(Arc::new(SingleGroup::new(name, self.config.rank, device)));
        };
        let key = self.next_key(name, ranks);
        membership::create(self, meeting_point, name, ranks, member, &key, device)
    }

    /// The training step that errors mention from now on.
    pub fn set_step(&self, step: u64) {
        self.health.set_step(step);
    }

    /// Reports every operation of every group of this world, also of groups that exist already, to `observer`.
    ///
    /// The first observer stays; returns whether this is it.
    pub fn observe(&self, observer: Arc<dyn Observer>) -> bool {
        self.observer.set(observer).is_ok()
    }

    /// Tells all other ranks that this one has failed, and why. Whatever they wait for, they give up at once.
    pub fn abort(&self, reason: &str) {
        if let Some(point) = &self.meeting_point {
            point.end(Fate::Aborted(reason.to_owned()));
        }
    }

    /// Leaves, as dropping does; for code that wants to say so.
    pub fn finish(self) {}

    /// This rank's place in `ranks`.
    pub(crate) fn validate_members(&self, name: &str, ranks: &[usize]) -> Result<usize> {
        let invalid = |reason: String| CommError::Invalid {
            collective: Collective::NewGroup,
            group: name.into(),
            reason,
        };
        for (index, rank) in ranks.iter().enumerate() {
            if *rank >= self.config.world_size {
                return Err(invalid(format!(
                    "there is no rank {rank} in a world of {}",
                    self.config.world_size
                )));
            }
            if ranks[..index].contains(rank) {
                return Err(invalid(format!("rank {rank} is there twice")));
            }
        }
        let own = self.config.rank;
        ranks
            .iter()
            .position(|rank| *rank == own)
            .ok_or_else(|| invalid(format!("rank {own} cannot create it for {ranks:?}")))
    }

    /// The store key under which the members of the next group of this name meet.
    pub(crate) fn next_key(&self, name: &str, ranks: &[usize]) -> String {
        let members: Vec<String> = ranks.iter().map(usize::to_string).collect();
        let key = format!("group/{name}/{}", members.join(","));
        let mut generations = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let generation = generations.entry(key.clone()).or_insert(0);
        *generation += 1;
        format!("{key}/{generation}")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(point) = &self.meeting_point {
            point.end(if std::thread::panicking() {
                Fate::Aborted("it panicked".to_owned())
            } else {
                Fate::Finished
            });
        }
    }
}
