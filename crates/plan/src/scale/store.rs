//! What is said over rank 0's store. Its messages are those of `crates/comm/src/meet/store/wire.rs`; a test of
//! `crates/trainer`, which sees both, counts what ranks really say.

use std::ops::Add;

use super::groups::{Groups, Hosts, Way};

/// Bytes of a message besides what it says: its length, and which it is.
const FRAME: u64 = 5;

/// The most bytes of values that go into one message (`PACKED` in `store/parts.rs`).
const PACKED: u64 = 1 << 16;

/// Bytes of a hash in letters, which stands for the members in a group's key.
const HASH: u64 = 64;

/// What a member says of its process: seven digits, and the host's identity (`Process::encode`).
const PROCESS: u64 = 7 + 1 + 36;

/// Where a member listens: an IPv4 address and a port at their longest.
const LISTENER: u64 = 21;

/// Where a group's segment is: a process, a descriptor and a number of 64 bits (`Offer::encode`).
const SEGMENT: u64 = 7 + 1 + 2 + 1 + 20;

/// Which GPU a member has: the host's identity, and the device's in letters.
const DEVICE: u64 = 36 + 1 + 32;

/// NCCL's id in letters.
const NCCL_ID: u64 = 256;

/// A poll looks at a connection for so long, and a small message is written or read in so long: measured on one core that does
/// nothing else. A guess for any other.
const LOOK_S: f64 = 1e-7;
const MESSAGE_S: f64 = 6e-6;

/// Messages, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// Messages to the store.
    pub received: u64,
    /// From it.
    pub sent: u64,
    /// Bytes to the store, where processes and addresses have as many digits as they may have.
    pub received_bytes: u64,
    /// Bytes from it.
    pub sent_bytes: u64,
}

impl Add for Said {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            sent: self.sent + other.sent,
            received_bytes: self.received_bytes + other.received_bytes,
            sent_bytes: self.sent_bytes + other.sent_bytes,
        }
    }
}

/// Bytes of a number on the wire: seven bits in each.
fn digits(number: u64) -> u64 {
    u64::from(number.max(1).ilog2() / 7 + 1)
}

/// One value of `len` bytes of each of `n` members, whose key has `key` bytes: a request of each and the answer, which is all values, in
/// as many messages as these take.
fn gathered(n: u64, key: u64, len: u64) -> Said {
    // Whether it is there, how long it is, and itself.
    let packed = 1 + digits(len) + len;
    let each = 1 + (PACKED - PACKED.min(len + 4)) / packed;
    let pieces = n.div_ceil(each);
    let request = FRAME + 1 + digits(key) + key + 2 * digits(n) + digits(len) + len;
    let answer = pieces * (FRAME + 1 + digits(n) + digits(packed * each.min(n))) + n * packed;
    Said {
        received: n,
        sent: n * pieces,
        received_bytes: n * request,
        sent_bytes: n * answer,
    }
}

/// One value of the first of `n` members for all others: it says it, and they ask for it.
fn published(n: u64, key: u64, len: u64) -> Said {
    let set = FRAME + digits(key) + key + digits(len) + len;
    let get = FRAME + 1 + digits(key) + key;
    Said {
        received: n,
        sent: n - 1,
        received_bytes: set + (n - 1) * get,
        sent_bytes: (n - 1) * (FRAME + 1 + digits(len) + len),
    }
}

/// Until all ranks have met: a hello and its welcome, then that it is there and that all are
/// (`MeetingPoint::reach`).
pub fn meeting(ranks: usize) -> Said {
    let n = ranks as u64;
    let hello = Said {
        received: n,
        sent: n,
        received_bytes: n * (FRAME + 2 * digits(n)),
        sent_bytes: n * FRAME,
    };
    hello + gathered(n, "met".len() as u64, 0)
}

/// What the members of these groups find each other by (`SharedMemory::join`, `tcp/connect.rs`, `cuda.rs` and `nccl.rs` of
/// `crates/comm/src/transport`).
pub fn joining(groups: &Groups) -> Said {
    let n = groups.size as u64;
    let key = |what: &str| {
        let name = groups.name.len() as u64;
        ("group/".len() as u64) + name + 1 + HASH + "/1/".len() as u64 + what.len() as u64
    };
    let process = || gathered(n, key("process"), PROCESS);
    let listener = || gathered(n, key("listener"), LISTENER);
    let one = match groups.way {
        Way::SharedMemory => {
            let segment = published(n, key("segment/0"), SEGMENT);
            process() + segment + gathered(n, key("seen"), 0)
        }
        Way::Tcp { tried: true } => process() + listener(),
        Way::Tcp { tried: false } => listener(),
        Way::Nccl => gathered(n, key("device"), DEVICE) + published(n, key("nccl/0"), NCCL_ID),
    };
    let times = groups.count as u64;
    Said {
        received: times * one.received,
        sent: times * one.sent,
        received_bytes: times * one.received_bytes,
        sent_bytes: times * one.sent_bytes,
    }
}

/// What all groups of a run find each other by.
pub fn all_joining(hosts: &Hosts) -> Said {
    let groups = hosts.groups();
    groups.iter().map(joining).fold(Said::default(), Add::add)
}

/// All that is said until there are groups.
pub fn starting(hosts: &Hosts) -> Said {
    meeting(hosts.ranks) + all_joining(hosts)
}

/// At the end: every rank but the first says that it has ended, and is told of those that ended before it has. At most each of each, once;
/// where all end at the same time, far fewer.
pub fn ends(ranks: usize) -> Said {
    let n = ranks as u64;
    let sent = n * n.saturating_sub(1) / 2;
    Said {
        received: n - 1,
        sent,
        received_bytes: (n - 1) * (FRAME + 2),
        sent_bytes: sent * (FRAME + 1 + digits(n)),
    }
}

/// Seconds of the store's one thread for `said`, at most: as if every message woke it alone, so that it looks at all connections.
pub fn thread_s(said: Said, ranks: usize) -> f64 {
    let looks = said.received as f64 * ranks as f64 * LOOK_S;
    looks + (said.received + said.sent) as f64 * MESSAGE_S
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiny models on hosts of 16 ranks, rows of four: what was measured (docs/plan.md, `many_ranks` in `crates/cli/tests`).
    #[test]
    fn the_store_hears_and_says_what_it_did_with_64_and_256_real_ranks() {
        for (ranks, received, sent) in [(64, 639, 1226), (256, 2559, 4163)] {
            let start = starting(&Hosts::of_16(ranks));
            let ends = ends(ranks);
            assert_eq!(start.received + ends.received, received);
            // How many are told of an end depends on who ends when.
            assert!((start.sent..=start.sent + ends.sent).contains(&sent));
        }
    }

    #[test]
    fn what_does_not_fit_into_one_message_takes_several() {
        let one = |n: u64| gathered(n, 80, PROCESS).sent / n;
        assert_eq!((one(64), one(1024), one(2000), one(20_000)), (1, 1, 2, 15));
        assert_eq!(
            [0, 1, 127, 128, 16_383, 16_384].map(digits),
            [1, 1, 1, 2, 2, 3]
        );
    }
}
