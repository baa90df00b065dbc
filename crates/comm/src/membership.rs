//! How the members of a new group find each other and agree on a transport.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tandem_tensor::Device;

use crate::collective::Site;
use crate::context::GroupContext;
use crate::error::{CommError, Result};
use crate::group::{CpuGroup, ProcessGroup};
use crate::health::Fate;
use crate::queue::Backend;
use crate::shm::{self, SharedMemory};
use crate::tcp::Tcp;
use crate::world::{MeetingPoint, Transport, World};

/// Why there is no shared memory where nobody could expect it.
const DIFFERENT_HOSTS: &str = "the ranks are on different hosts";

/// One creation of one group, seen from one member.
pub(crate) struct Membership<'a> {
    pub(crate) context: Arc<GroupContext>,
    point: &'a MeetingPoint,
    key: &'a str,
    site: Site,
}

/// Creates this rank's end of a group of at least two ranks, for tensors in host memory or on a CUDA device.
pub(crate) fn create(
    world: &World,
    point: &Arc<MeetingPoint>,
    name: &str,
    ranks: &[usize],
    member: usize,
    key: &str,
    device: Device,
) -> Result<Arc<dyn ProcessGroup>> {
    let membership = Membership::new(world, point, name, ranks, member, key);
    if let Device::Cuda(ordinal) = device {
        return membership.on_cuda(ordinal);
    }
    let backend = membership.transport(world.config.transport)?;
    Ok(Arc::new(CpuGroup::new(membership.context, backend)))
}

impl<'a> Membership<'a> {
    pub(crate) fn new(
        world: &World,
        point: &'a Arc<MeetingPoint>,
        name: &str,
        ranks: &[usize],
        member: usize,
        key: &'a str,
    ) -> Self {
        let escalating = point.clone();
        let context = Arc::new(GroupContext {
            name: name.into(),
            ranks: ranks.to_vec(),
            rank: member,
            ranks_on_host: world.config.local_world_size,
            timeout: world.config.timeout,
            health: world.health.clone(),
            observer: world.observer.clone(),
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
        });
        let site = context.creation();
        Self {
            context,
            point,
            key,
            site,
        }
    }

    #[cfg(feature = "nccl")]
    fn on_cuda(&self, ordinal: usize) -> Result<Arc<dyn ProcessGroup>> {
        crate::nccl::create(self, ordinal)
    }

    #[cfg(not(feature = "nccl"))]
    fn on_cuda(&self, ordinal: usize) -> Result<Arc<dyn ProcessGroup>> {
        Err(CommError::Device {
            library: "NCCL",
            reason: format!(
                "this program was built without it, so device {ordinal} cannot be used; build with the feature \"nccl\""
            ),
            site: self.site.clone(),
        })
    }

    fn transport(&self, wanted: Transport) -> Result<Box<dyn Backend>> {
        if wanted == Transport::Tcp {
            return self.tcp();
        }
        match self.shared_memory()? {
            Ok(backend) => Ok(backend),
            Err(reason) if wanted == Transport::Auto => {
                let group = &self.context.name;
                if reason == DIFFERENT_HOSTS {
                    tracing::info!(%group, reason, "TCP instead of shared memory");
                } else {
                    tracing::warn!(%group, reason, "TCP instead of shared memory, which is slower");
                }
                self.tcp()
            }
            Err(reason) => Err(self.no_shared_memory(reason)),
        }
    }

    /// Shared memory, or why these members cannot share any. All members come to the same result.
    fn shared_memory(&self) -> Result<Result<Box<dyn Backend>, String>> {
        let hosts = self.exchange("host", &shm::host_identity().unwrap_or_default())?;
        if hosts
            .iter()
            .any(|host| host.is_empty() || *host != hosts[0])
        {
            return Ok(Err(DIFFERENT_HOSTS.to_owned()));
        }
        let size = self.context.size();
        let leads = self.context.rank == 0;
        let (segment, answer) = if leads {
            match shm::offer(size) {
                Ok((segment, offer)) => (Some(segment), offer.encode()),
                Err(reason) => (None, format!("no {reason}")),
            }
        } else {
            let text = self.get(0, "segment")?;
            match shm::Offer::decode(&text).map(|offer| shm::accept(&offer, size)) {
                Some(Ok(segment)) => (Some(segment), String::new()),
                Some(Err(error)) => (None, format!("rank {}: {error}", self.own_rank())),
                None => return Err(self.no_shared_memory(without_no(&text))),
            }
        };
        if leads {
            self.set("segment", &answer)?;
            if segment.is_none() {
                return Err(self.no_shared_memory(without_no(&answer)));
            }
        }
        let seen = self.exchange("seen", if leads { "" } else { &answer })?;
        let pids = self.exchange("pid", &std::process::id().to_string())?;
        if let Some(reason) = seen.into_iter().find(|reason| !reason.is_empty()) {
            return Ok(Err(format!(
                "the ranks share a host, but not its processes' memory ({reason})"
            )));
        }
        let Some(mut segment) = segment else {
            return Ok(Err("the segment is gone".to_owned()));
        };
        segment.close_file();
        // A process that cannot be watched is still watched by the store.
        let pids: Vec<u32> = pids.iter().map(|pid| pid.parse().unwrap_or(0)).collect();
        let backend = SharedMemory::new(self.context.clone(), segment, &pids);
        Ok(Ok(Box::new(backend)))
    }

    fn tcp(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Tcp::connect(self)?))
    }

    /// Where other hosts reach this rank.
    pub(crate) fn address(&self) -> IpAddr {
        self.point.address
    }

    /// Publishes this member's `value` and collects everyone's, in group order.
    pub(crate) fn exchange(&self, what: &str, value: &str) -> Result<Vec<String>> {
        self.set(what, value)?;
        (0..self.context.size())
            .map(|member| self.get(member, what))
            .collect()
    }

    pub(crate) fn set(&self, what: &str, value: &str) -> Result<()> {
        let key = format!("{}/{what}/{}", self.key, self.context.rank);
        self.point.client.set(&key, value.as_bytes(), &self.site)
    }

    pub(crate) fn get(&self, member: usize, what: &str) -> Result<String> {
        let key = format!("{}/{what}/{member}", self.key);
        let owner = self.context.ranks[member];
        let value = self.point.client.get(&key, owner, &self.site)?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    fn own_rank(&self) -> usize {
        self.context.ranks[self.context.rank]
    }

    fn no_shared_memory(&self, reason: String) -> CommError {
        CommError::SharedMemory {
            group: self.context.name.clone(),
            reason,
        }
    }
}

/// The reason in a refused offer.
fn without_no(text: &str) -> String {
    text.strip_prefix("no ").unwrap_or(text).to_owned()
}
