//! Finding out, by trying it, whether the members of a new group can share memory.

use std::io;

use crate::transport::shm::segment::Segment;

/// What each member publishes of its process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    /// As its own process namespace has it; 0 where it did not say.
    pub(super) pid: u32,
    /// See [`host_identity`]; empty where it is unknown.
    host: String,
}

impl Process {
    /// This one.
    pub(super) fn own() -> Self {
        Self {
            pid: std::process::id(),
            host: host_identity().unwrap_or_default(),
        }
    }

    pub(super) fn encode(&self) -> String {
        format!("{} {}", self.pid, self.host)
    }

    /// The reverse of [`Process::encode`].
    pub(super) fn decode(text: &str) -> Self {
        let (pid, host) = text.split_once(' ').unwrap_or_default();
        Self {
            pid: pid.parse().unwrap_or(0),
            host: host.to_owned(),
        }
    }

    /// Whether one kernel is known to run both.
    pub(super) fn shares_host(&self, other: &Self) -> bool {
        !self.host.is_empty() && self.host == other.host
    }
}

/// What the group's first member publishes: where its segment is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) pid: u32,
    pub(super) fd: i32,
    pub(super) nonce: u64,
}

impl Offer {
    pub(super) fn encode(&self) -> String {
        format!("{} {} {}", self.pid, self.fd, self.nonce)
    }

    /// The reverse of [`Offer::encode`].
    pub(super) fn decode(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let offer = Self {
            pid: words.next()?.parse().ok()?,
            fd: words.next()?.parse().ok()?,
            nonce: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(offer)
    }
}

/// Creates the segment of a group of `members` ranks.
///
/// # Errors
/// A sentence that says what to do.
pub(super) fn offer(members: usize) -> Result<(Segment, Offer), String> {
    let nonce =
        getrandom::u64().map_err(|error| format!("the system has no random numbers ({error})"))?;
    let segment = Segment::create(members, nonce).map_err(|error| {
        format!(
            "{} MiB for {members} ranks could not be reserved ({error}); raise the memory limit of the container or \
             job, or use the TCP transport",
            Segment::len_for(members) >> 20
        )
    })?;
    let offer = Offer {
        pid: std::process::id(),
        fd: segment.fd().unwrap_or(-1),
        nonce,
    };
    Ok((segment, offer))
}

/// Opens the segment of a group of `members` ranks in another member's process.
///
/// # Errors
/// What is in the way, such as another process namespace.
pub(super) fn accept(offer: &Offer, members: usize) -> io::Result<Segment> {
    Segment::open(offer.pid, offer.fd, members, offer.nonce)
}

/// What is the same for two processes exactly when one running kernel runs both. `None` when it cannot be read.
pub(crate) fn host_identity() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_survive_encoding() {
        let offer = Offer {
            pid: 1,
            fd: 7,
            nonce: u64::MAX,
        };
        assert_eq!(Offer::decode(&offer.encode()), Some(offer));
        for bad in ["", "1 2", "1 2 x", "1 2 3 4"] {
            assert_eq!(Offer::decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn hosts_are_the_same_only_where_both_are_known() {
        let own = Process::own();
        assert_eq!(Process::decode(&own.encode()), own);
        assert!(own.shares_host(&own), "this host has an identity");
        for other in ["", "12", "12 ", "12 another host"] {
            let other = Process::decode(other);
            assert!(!other.shares_host(&own) && !own.shares_host(&other));
        }
        let unknown = Process::decode("12 ");
        assert!(!unknown.shares_host(&unknown));
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        let offer = Offer {
            pid: u32::MAX,
            fd: 7,
            nonce: 1,
        };
        assert!(accept(&offer, 2).is_err());
    }
}
