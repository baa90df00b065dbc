//! All ranks of a run: where they have met, and the groups that they make.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tandem_tensor::Device;

use crate::collective::Collective;
use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::observe::Observer;
use crate::group::process_group::ProcessGroup;
use crate::group::single::SingleGroup;
use crate::meet::config::WorldConfig;
use crate::meet::health::{Fate, Health};
use crate::meet::membership::Membership;
use crate::meet::point::MeetingPoint;
use crate::meet::rendezvous;
use crate::transport;

/// For tests: makes a group whose members have met.
#[cfg(feature = "testing")]
pub(crate) type GroupMaker = dyn Fn(Arc<GroupContext>, &Arc<MeetingPoint>, &Membership<'_>) -> Result<Arc<dyn ProcessGroup>>
    + Send
    + Sync;

/// The connection of this rank to the whole run.
///
/// Dropping it says goodbye: other ranks that still wait for this one get an error, all others do not mind. A process that
/// ends without dropping it has failed in the eyes of the others, who then give up whatever they wait for.
pub struct World {
    config: WorldConfig,
    health: Arc<Health>,
    observer: Arc<OnceLock<Arc<dyn Observer>>>,
    /// `None` in a world of one.
    meeting_point: Option<Arc<MeetingPoint>>,
    /// How many groups of a name and membership were created.
    generations: Mutex<HashMap<String, u64>>,
    /// For tests: what makes groups for tensors in host memory instead.
    #[cfg(feature = "testing")]
    maker: Option<Box<GroupMaker>>,
}

impl World {
    /// Meets all other ranks. Returns when everybody is there.
    ///
    /// # Errors
    /// [`CommError::Listen`] or [`CommError::Rendezvous`], saying what to check.
    pub fn connect(config: &WorldConfig) -> Result<Self> {
        Self::connect_at(config, &rendezvous::ports(config.master_port, false))
    }

    /// As [`World::connect`], for launchers where another service listens on `master_port`.
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
        let meeting_point = MeetingPoint::reach(config, ports, &health)?.map(Arc::new);
        Ok(Self {
            config: config.clone(),
            health,
            observer: Arc::default(),
            meeting_point,
            generations: Mutex::default(),
            #[cfg(feature = "testing")]
            maker: None,
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
            .map_or(Ipv4Addr::LOCALHOST.into(), |point| point.address())
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
        self.meet_members(
            meeting_point,
            (name, ranks, member),
            |context, membership| {
                #[cfg(feature = "testing")]
                if let Some(make) = self.maker.as_ref().filter(|_| device == Device::Cpu) {
                    return make(context, meeting_point, membership);
                }
                let transport = self.config.transport;
                transport::create(context, meeting_point, membership, transport, device)
            },
        )
    }

    /// Meets the other members of a new group, for `create` to make it.
    fn meet_members<T>(
        &self,
        meeting_point: &Arc<MeetingPoint>,
        (name, ranks, member): (&str, &[usize], usize),
        create: impl FnOnce(Arc<GroupContext>, &Membership<'_>) -> T,
    ) -> T {
        let context = Arc::new(self.context(meeting_point, name, ranks, member));
        let membership = Membership::new(
            meeting_point.client(),
            meeting_point.address(),
            &self.config.secret,
            self.next_key(name, ranks),
            ranks,
            member,
            context.creation(),
        );
        create(context, &membership)
    }

    /// For tests: what was said over the store so far, on rank 0.
    #[cfg(feature = "testing")]
    pub(crate) fn store_traffic(&self) -> Option<crate::meet::store::Traffic> {
        self.meeting_point.as_ref()?.traffic()
    }

    /// For tests: `maker` makes groups for tensors in host memory.
    #[cfg(feature = "testing")]
    pub(crate) fn made_by(mut self, maker: Box<GroupMaker>) -> Self {
        self.maker = Some(maker);
        self
    }

    /// For tests: all ranks as a group that `create` makes.
    #[cfg(all(test, feature = "nccl"))]
    pub(crate) fn everyone_by<T>(
        &self,
        create: impl FnOnce(Arc<GroupContext>, &Arc<MeetingPoint>, &Membership<'_>) -> T,
    ) -> T {
        let ranks: Vec<usize> = (0..self.size()).collect();
        let point = self.meeting_point.as_ref().expect("several ranks");
        self.meet_members(
            point,
            ("all", &ranks, self.rank()),
            |context, membership| create(context, point, membership),
        )
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

    fn context(
        &self,
        meeting_point: &Arc<MeetingPoint>,
        name: &str,
        ranks: &[usize],
        member: usize,
    ) -> GroupContext {
        let escalating = meeting_point.clone();
        GroupContext {
            name: name.into(),
            ranks: ranks.to_vec(),
            rank: member,
            ranks_on_host: self.config.local_world_size,
            timeout: self.config.timeout,
            health: self.health.clone(),
            observer: self.observer.clone(),
            escalate: Arc::new(move |error: &CommError| {
                // A mismatch shows on every member by itself, and a peer's end is known; these are not.
                if matches!(
                    error,
                    CommError::Timeout { .. } | CommError::System { .. } | CommError::Device { .. }
                ) {
                    escalating.end(Fate::Aborted(error.to_string()));
                }
            }),
            closing: AtomicBool::new(false),
        }
    }

    /// This rank's place in `ranks`.
    fn validate_members(&self, name: &str, ranks: &[usize]) -> Result<usize> {
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
    fn next_key(&self, name: &str, ranks: &[usize]) -> String {
        // A hash, because keys are short and there may be many members.
        let mut members = blake3::Hasher::new();
        for rank in ranks {
            members.update(&(*rank as u64).to_le_bytes());
        }
        let key = format!("group/{name}/{}", members.finalize().to_hex());
        let mut generations = self.generations.lock();
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
