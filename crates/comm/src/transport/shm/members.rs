//! Whether the other members' processes are alive.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::group::context::GroupContext;

/// A process descriptor for each of the other members. Unlike a process id it never comes to mean another process.
pub(super) struct Members {
    /// Place in the group, and the descriptor.
    peers: Vec<(usize, OwnedFd)>,
}

impl Members {
    /// `pids` are the members' processes, in group order; all are alive.
    pub(super) fn open(context: Arc<GroupContext>, pids: &[u32]) -> Self {
        let mut peers = Vec::new();
        for (member, pid) in pids.iter().enumerate() {
            if member == context.rank {
                continue;
            }
            let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
                Some(Ok(descriptor)) => peers.push((member, descriptor)),
                // The store's connection still tells of its death.
                failed => tracing::warn!(
                    rank = context.ranks[member],
                    ?failed,
                    "no process descriptor"
                ),
            }
        }
        Self { peers }
    }

    /// The members whose processes have ended.
    pub(super) fn ended(&self) -> impl Iterator<Item = usize> {
        let mut polled: Vec<PollFd<'_>> = self
            .peers
            .iter()
            .map(|(_, descriptor)| PollFd::new(descriptor, PollFlags::IN))
            .collect();
        let now = Timespec::try_from(Duration::ZERO).ok();
        // A poll that fails says nothing; the next one will.
        let _ready = poll(&mut polled, now.as_ref());
        let ended: Vec<bool> = polled
            .iter()
            .map(|entry| entry.revents().contains(PollFlags::IN))
            .collect();
        let members = self.peers.iter().map(|(member, _)| *member);
        members
            .zip(ended)
            .filter_map(|(member, ended)| ended.then_some(member))
    }
}
