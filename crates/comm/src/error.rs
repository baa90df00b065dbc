//! What can go wrong between ranks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::collective::{Collective, Site};

/// Shorthand for this crate's results.
pub type Result<T, E = CommError> = std::result::Result<T, E>;

/// Why ranks could not meet or a collective could not be done.
///
/// Ranks in messages are world ranks.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommError {
    /// The caller's arguments do not make an operation. The group stays usable.
    #[error("{collective} of group {group:?}: {reason}")]
    Invalid {
        /// What was asked for.
        collective: Collective,
        /// The group's name.
        group: Arc<str>,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A rank died, or closed its end, while it was needed.
    #[error("rank {rank} left during {site}")]
    PeerLeft {
        /// The rank that is gone.
        rank: usize,
        /// What this rank was doing.
        site: Site,
    },
    /// A rank failed for a reason of its own and said so.
    #[error("rank {rank} aborted: {reason} (noticed during {site})")]
    PeerAborted {
        /// The rank that failed.
        rank: usize,
        /// What it said.
        reason: String,
        /// What this rank was doing.
        site: Site,
    },
    /// Ranks are connected but do not answer.
    #[error(
        "no answer from {} within {} s during {site}; if they are only slow, raise --comm_timeout_s",
        ranks_text(ranks),
        timeout.as_secs_f64()
    )]
    Timeout {
        /// The ranks that are waited for.
        ranks: Vec<usize>,
        /// How long they had.
        timeout: Duration,
        /// What this rank was doing.
        site: Site,
    },
    /// Ranks of a group do different things.
    #[error(
        "ranks disagree in {site}: rank {own_rank} calls {own}, but rank {peer} calls {theirs}"
    )]
    Mismatch {
        /// What this rank was doing.
        site: Site,
        /// This rank.
        own_rank: usize,
        /// This rank's operation.
        own: String,
        /// The rank that differs.
        peer: usize,
        /// That rank's operation.
        theirs: String,
    },
    /// The group failed before and cannot be used any more.
    #[error("group {group:?} is closed since an earlier failure: {first}")]
    Poisoned {
        /// The group's name.
        group: Arc<str>,
        /// The failure that closed it.
        first: Box<CommError>,
    },
    /// The group was dropped while the operation was under way.
    #[error("{site} was abandoned: this rank closed the group before it was done")]
    Abandoned {
        /// The operation.
        site: Site,
    },
    /// Rank 0 cannot listen for the others.
    #[error("rank 0 cannot listen for the other ranks on {address}: {source}; {remedy}")]
    Listen {
        /// Where it tried to.
        address: String,
        /// What to do.
        remedy: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The rendezvous was not completed.
    #[error("rank {rank} could not meet the other ranks at {address}: {reason}")]
    Rendezvous {
        /// This rank.
        rank: usize,
        /// Where rank 0 listens.
        address: String,
        /// What happened and what to do.
        reason: String,
    },
    /// Shared memory cannot be had.
    #[error("no shared memory for group {group:?}: {reason}")]
    SharedMemory {
        /// The group's name.
        group: Arc<str>,
        /// What failed and what to do.
        reason: String,
    },
    /// A member of a new group cannot be reached.
    #[error(
        "cannot connect to rank {rank} at {address} for {site}: {source}; check that no firewall is in between, or choose \
         another --network_interface"
    )]
    Connect {
        /// The rank that is to be reached.
        rank: usize,
        /// Where it listens.
        address: String,
        /// What it is for.
        site: Site,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The system refused something else.
    #[error("cannot {what} for {site}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The operation it was for.
        site: Site,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A device library (CUDA, NCCL) reported an error.
    #[error("{library} failed during {site}: {reason}")]
    Device {
        /// Whose error it is.
        library: &'static str,
        /// What it said.
        reason: String,
        /// What this rank was doing.
        site: Site,
    },
    /// A test asked for this failure.
    #[cfg(feature = "testing")]
    #[error("injected failure in {collective}, operation {nth} of group {group:?}")]
    Injected {
        /// The operation.
        collective: Collective,
        /// The group's name.
        group: Arc<str>,
        /// Its number, from 1.
        nth: u64,
    },
}

impl CommError {
    /// The operation that it is about, for errors of one.
    #[cfg(feature = "nccl")]
    pub(crate) fn site(&self) -> Option<&Site> {
        match self {
            Self::PeerLeft { site, .. }
            | Self::PeerAborted { site, .. }
            | Self::Timeout { site, .. }
            | Self::Mismatch { site, .. }
            | Self::Abandoned { site }
            | Self::System { site, .. }
            | Self::Device { site, .. } => Some(site),
            _ => None,
        }
    }

    /// Another rank's failure caused this one: supervisors should look there first.
    ///
    /// A timeout and a mismatch are not secondary: often no rank has anything better to tell.
    pub fn is_secondary(&self) -> bool {
        match self {
            Self::PeerLeft { .. } | Self::PeerAborted { .. } | Self::Abandoned { .. } => true,
            Self::Poisoned { first, .. } => first.is_secondary(),
            _ => false,
        }
    }
}

fn ranks_text(ranks: &[usize]) -> String {
    let list: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match list.as_slice() {
        [only] => format!("rank {only}"),
        _ => format!("ranks {}", list.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_peer_collective_group_and_step() {
        let site = Site {
            collective: Collective::AllReduce,
            sequence: 812,
            group: "dp".into(),
            step: Some(40),
        };
        let left = CommError::PeerLeft {
            rank: 3,
            site: site.clone(),
        };
        assert_eq!(
            left.to_string(),
            "rank 3 left during all_reduce #812 of group \"dp\" (step 40)"
        );
        let timeout = CommError::Timeout {
            ranks: vec![1, 2],
            timeout: Duration::from_secs(300),
            site,
        };
        assert!(
            timeout
                .to_string()
                .starts_with("no answer from ranks 1, 2 within 300 s during all_reduce #812")
        );
        assert!(left.is_secondary() && !timeout.is_secondary());
        let later = CommError::Poisoned {
            group: "dp".into(),
            first: Box::new(left),
        };
        assert!(later.is_secondary());
    }
}
