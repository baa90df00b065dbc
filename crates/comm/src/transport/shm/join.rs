//! How the members of a new group come to share memory, or find out that they cannot.

use std::sync::Arc;

use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::meet::membership::Membership;
use crate::transport::shm::negotiate::{Offer, Process, accept, offer};
use crate::transport::shm::shared_memory::SharedMemory;

/// Why there is no shared memory where nobody could expect it.
pub(crate) const DIFFERENT_HOSTS: &str = "the ranks are on different hosts";

impl SharedMemory {
    /// Shared memory, or why these members cannot share any. All members come to the same result.
    ///
    /// # Errors
    /// What happens to a peer meanwhile, and [`CommError::SharedMemory`] when the first member has no memory to offer.
    pub(crate) fn join(
        context: &Arc<GroupContext>,
        membership: &Membership<'_>,
    ) -> Result<Result<Self, String>> {
        let refused = |reason: &str| CommError::SharedMemory {
            group: context.name.clone(),
            reason: reason.strip_prefix(NO).unwrap_or(reason).to_owned(),
        };
        let own = Process::own();
        let processes = membership.exchange("process", &own.encode())?;
        let processes: Vec<Process> = processes.iter().map(|text| Process::decode(text)).collect();
        if processes.iter().any(|process| !process.shares_host(&own)) {
            return Ok(Err(DIFFERENT_HOSTS.to_owned()));
        }
        let size = context.size();
        let leads = context.rank == 0;
        let (segment, answer) = if leads {
            match offer(size) {
                Ok((segment, offer)) => (Some(segment), offer.encode()),
                Err(reason) => (None, format!("{NO}{reason}")),
            }
        } else {
            let text = membership.get(0, "segment")?;
            match Offer::decode(&text).map(|offer| accept(&offer, size)) {
                Some(Ok(segment)) => (Some(segment), String::new()),
                Some(Err(error)) => {
                    let rank = context.ranks[context.rank];
                    (None, format!("rank {rank}: {error}"))
                }
                None => return Err(refused(&text)),
            }
        };
        if leads {
            membership.set("segment", &answer)?;
            if segment.is_none() {
                return Err(refused(&answer));
            }
        }
        let seen = membership.exchange("seen", if leads { "" } else { &answer })?;
        if let Some(reason) = seen.into_iter().find(|reason| !reason.is_empty()) {
            return Ok(Err(format!(
                "the ranks share a host, but not its processes' memory ({reason})"
            )));
        }
        let Some(mut segment) = segment else {
            return Ok(Err("the segment is gone".to_owned()));
        };
        segment.close_file();
        Ok(Ok(Self::new(context.clone(), segment, &processes)))
    }
}

/// What the first member publishes instead of an offer begins with this.
const NO: &str = "no ";
