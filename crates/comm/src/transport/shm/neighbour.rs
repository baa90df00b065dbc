//! Whether the next member's process is alive.
//!
//! The members watch each other in a ring: each has one process descriptor, that of the member after it, and says in the
//! segment, for all to see, that this one has ended. So a group of `n` costs `n` descriptors on its host and not `n (n - 1)`,
//! and a waiter looks at one process, however many it waits for.
//!
//! Somebody who waits hears of a death within two looks around (50 ms each) from the member before the dead one. When that one
//! is dead too, the one before it has told of its death, which ends the wait as well: as long as any member lives, the first
//! living one before a dead one watches a dead one. When that one does not wait but computes, the line to rank 0's store tells
//! of the death, for the kernel closes a dead process's connection; where rank 0 has left or is stopped, its watcher tells when
//! it comes to the meeting.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::group::context::GroupContext;
use crate::transport::shm::negotiate::Process;

/// The member after this one. The descriptor, unlike a process id, never comes to mean another process.
pub(super) struct Neighbour {
    /// Its place in the group.
    member: usize,
    /// `None` where the system has none: then the store alone tells of its death.
    process: Option<OwnedFd>,
}

impl Neighbour {
    /// `processes` are the members', in group order; all are alive.
    pub(super) fn open(context: &GroupContext, processes: &[Process]) -> Self {
        let member = (context.rank + 1) % processes.len();
        let pid = i32::try_from(processes[member].pid).ok();
        let process = match pid.and_then(Pid::from_raw) {
            None => None,
            Some(pid) => match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(descriptor) => Some(descriptor),
                Err(error) => {
                    let rank = context.ranks[member];
                    tracing::warn!(rank, %error, "no process descriptor");
                    None
                }
            },
        };
        Self { member, process }
    }

    /// The member, if its process has ended.
    pub(super) fn ended(&self) -> Option<usize> {
        let process = self.process.as_ref()?;
        let mut polled = [PollFd::new(process, PollFlags::IN)];
        let now = Timespec::try_from(Duration::ZERO).ok();
        // A poll that fails says nothing; the next one will.
        let _ready = poll(&mut polled, now.as_ref());
        let has_ended = polled[0].revents().contains(PollFlags::IN);
        has_ended.then_some(self.member)
    }
}
