//! What every part of one group shares: who its members are and when waiting for them must end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::collective::{Collective, Signature, Site};
use crate::error::{CommError, Result};
use crate::group::observe::Observer;
use crate::meet::health::Health;

/// Tells the world of a failure that the other ranks cannot see for themselves.
pub(crate) type Escalate = dyn Fn(&CommError) + Send + Sync;

/// One group as one member sees it.
pub(crate) struct GroupContext {
    pub(crate) name: Arc<str>,
    /// World ranks of the members, in group order.
    pub(crate) ranks: Vec<usize>,
    /// This process among `ranks`.
    pub(crate) rank: usize,
    /// Ranks of the world on this host, whether in this group or not: they share its cores.
    pub(crate) ranks_on_host: usize,
    /// How long a peer may take to answer.
    pub(crate) timeout: Duration,
    pub(crate) health: Arc<Health>,
    pub(crate) observer: Arc<OnceLock<Arc<dyn Observer>>>,
    pub(crate) escalate: Arc<Escalate>,
    /// Set when this rank drops the group: whoever still waits for a peer gives up.
    pub(crate) closing: AtomicBool,
}

impl GroupContext {
    pub(crate) fn size(&self) -> usize {
        self.ranks.len()
    }

    pub(crate) fn site(&self, signature: &Signature) -> Site {
        Site {
            collective: signature.collective,
            sequence: signature.sequence,
            group: self.name.clone(),
            step: self.health.step(),
        }
    }

    pub(crate) fn creation(&self) -> Site {
        Site {
            collective: Collective::NewGroup,
            sequence: 0,
            group: self.name.clone(),
            step: self.health.step(),
        }
    }

    /// Fails when it is pointless to wait longer for `awaited` (world ranks).
    pub(crate) fn check_waiting(&self, awaited: &[usize], signature: &Signature) -> Result<()> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(CommError::Abandoned {
                site: self.site(signature),
            });
        }
        self.health.check(awaited, &|| self.site(signature))
    }

    /// The error for a member, by its place in the group, that is seen to be gone.
    pub(crate) fn peer_left(&self, member: usize, signature: &Signature) -> CommError {
        self.health
            .explain(self.ranks[member], self.site(signature))
    }

    /// Compares a member's signature with this rank's.
    pub(crate) fn check_agreement(
        &self,
        own: &Signature,
        member: usize,
        theirs: [u64; Signature::WORDS],
    ) -> Result<()> {
        let ours = own.encode();
        if ours == theirs {
            return Ok(());
        }
        Err(CommError::Mismatch {
            site: self.site(own),
            own_rank: self.ranks[self.rank],
            own: Signature::describe(ours),
            peer: self.ranks[member],
            theirs: Signature::describe(theirs),
        })
    }
}
