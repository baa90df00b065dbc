//! What ends first when ranks are made more.

use serde::Serialize;

use super::figures::{Known, descriptors_asked};
use super::store;

/// Ports of a host for connections to one address and port, unless somebody has set `net.ipv4.ip_local_port_range`: 32,768 to 60,999.
const PORTS: u64 = 28_232;

/// Connections that may wait at a socket until they are taken, unless somebody has set `net.core.somaxconn`
/// (`Door::new` in `crates/comm/src/meet/door.rs` asks for as many as are expected). The system tries a connection more again, a second
/// later.
const QUEUE: u64 = 4096;

/// Bytes that the list of a checkpoint may have: more is not read (`MAX_READ_BYTES` in `crates/checkpoint/src/store.rs`).
pub const LARGEST_LIST: u64 = 512 << 20;

/// Seconds that ranks wait for each other unless they are told otherwise (`--comm_timeout_s`).
pub const PATIENCE_S: f64 = 300.0;

/// Hard limits of descriptors that systems have: an old default, and that of systemd.
const HARD_LIMITS: [u64; 2] = [4096, 1 << 20];

/// What is said of these.
const ELSEWHERE: &str = "open files of a process, where the hard limit is such";

/// More ranks than any cluster has.
const MOST: usize = 1 << 24;

/// Limits of descriptors of this process, as the system has them; none is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// The one that counts.
    pub soft: Option<u64>,
    /// As far as it can be raised.
    pub hard: Option<u64>,
}

/// What happens where a limit is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// The run does not begin, or ends.
    Ends,
    /// It goes on, more slowly.
    Slows,
    /// Nothing: the run raises it by itself.
    IsRaised,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    /// What it is.
    pub what: String,
    /// What happens there.
    pub then: Then,
    /// How much of it there is.
    pub has: f64,
    /// How much of it this run needs.
    pub needs: f64,
    /// The fewest ranks that need more; `None` where no number does.
    pub met_at: Option<usize>,
    /// Whether it is one of other hosts than this.
    pub elsewhere: bool,
}

/// All limits, those that are met first in front.
pub(super) fn limits(known: &Known<'_>, ranks: usize, descriptors: Descriptors) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut add = |what: &str, then, has: f64, need: &dyn Fn(usize) -> f64| {
        limits.push(Limit {
            what: what.to_owned(),
            then,
            has,
            needs: need(ranks),
            met_at: met_at(known.unit(), |ranks| need(ranks) > has),
            elsewhere: what == ELSEWHERE,
        });
    };
    let asked = |ranks: usize| descriptors_asked(ranks) as f64;
    if let Some(soft) = descriptors.soft {
        let what = "open files of a process, soft limit here (ulimit -Sn)";
        add(what, Then::IsRaised, soft as f64, &asked);
    }
    if let Some(hard) = descriptors.hard {
        let what = "open files of a process, hard limit here (ulimit -Hn)";
        add(what, Then::Ends, hard as f64, &asked);
    }
    for hard in HARD_LIMITS
        .into_iter()
        .filter(|it| Some(*it) != descriptors.hard)
    {
        add(ELSEWHERE, Then::Ends, hard as f64, &asked);
    }
    let of_host = |ranks: usize| ranks.min(known.hosts(ranks).each) as f64;
    let what = "ports of a host for its ranks' connections to rank 0's store";
    add(what, Then::Ends, PORTS as f64, &of_host);
    let what = "connections that wait at rank 0's sockets (net.core.somaxconn)";
    add(what, Then::Slows, QUEUE as f64, &|ranks| ranks as f64);
    let joining = |ranks: usize| store::thread_s(store::starting(&known.hosts(ranks)), ranks);
    let what = "seconds of the store's thread until there are groups, at most (--comm_timeout_s)";
    add(what, Then::Ends, PATIENCE_S, &joining);
    let ending = |ranks: usize| store::thread_s(store::ends(ranks), ranks);
    let what = "seconds of the store's thread at the end, at most";
    add(what, Then::Slows, PATIENCE_S, &ending);
    let list = |ranks: usize| known.list(ranks).bytes as f64;
    let what = "bytes of a checkpoint's list, which every rank reads";
    add(what, Then::Ends, LARGEST_LIST as f64, &list);
    limits.sort_by_key(|it| it.met_at.unwrap_or(usize::MAX));
    limits
}

/// The fewest ranks, a multiple of `unit`, for which it `is` so. What is so for some ranks is so for more.
fn met_at(unit: usize, is: impl Fn(usize) -> bool) -> Option<usize> {
    let most = MOST / unit;
    if most == 0 || !is(most * unit) {
        return None;
    }
    let (mut low, mut high) = (1, most);
    while low < high {
        let middle = low.midpoint(high);
        match is(middle * unit) {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    Some(high * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_of_ranks_that_needs_more_is_found() {
        assert_eq!(met_at(8, |ranks| ranks > 1008), Some(1016));
        assert_eq!(met_at(8, |_| true), Some(8));
        assert_eq!(met_at(3, |_| false), None);
    }
}
