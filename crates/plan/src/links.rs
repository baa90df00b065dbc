//! How long a collective takes that nothing disturbs, by the links between its ranks.

use crate::device::{Device, Link};
use crate::group::Members;
use crate::talk::{Collective, Verb};

/// Seconds of `collective` among `members`.
pub(crate) fn seconds(collective: &Collective, members: Members, device: &Device) -> f64 {
    if members.count < 2 {
        return 0.0;
    }
    let bytes = collective.bytes as f64;
    match collective.verb {
        Verb::AllReduce => rings(2.0, bytes, members, device),
        Verb::AllGather | Verb::ReduceScatter => rings(1.0, bytes, members, device),
        Verb::AllToAll => pairs(bytes, members, device),
    }
}

/// Bytes that a rank sends of `collective` among `count`: what is its own of a tensor goes to all others, and of a sum each part's sum
/// once more.
pub(crate) fn sent(collective: &Collective, count: usize) -> f64 {
    let n = count.max(1) as f64;
    let others = collective.bytes as f64 * (n - 1.0) / n;
    match collective.verb {
        Verb::AllReduce => 2.0 * others,
        Verb::AllGather | Verb::ReduceScatter => others,
        Verb::AllToAll => others / n,
    }
}

/// Of the members, those in one node.
fn in_node(members: Members, device: &Device) -> usize {
    (device.devices_per_node / members.stride).clamp(1, members.count)
}

/// Rings for large tensors (each byte goes round once, or twice for a sum that all get), trees for small ones.
fn rings(rounds: f64, bytes: f64, members: Members, device: &Device) -> f64 {
    let here = in_node(members, device);
    let n = members.count as f64;
    let moved = rounds * bytes * (n - 1.0) / n;
    let Link { latency_s, .. } = device.link;
    let within = moved / device.link.rate();
    if here == members.count {
        return within + rounds * latency_s * n.log2().ceil();
    }
    // The groups beside this one use the same adapters, so that a group has those of its members.
    let network = device.network;
    let own = network.rate() * here as f64 / device.devices_per_node as f64;
    let hops = rounds * (network.latency_s * (n / here as f64).log2().ceil());
    let within = if here > 1 { within } else { 0.0 };
    (moved / own).max(within) + hops + rounds * latency_s * (here as f64).log2().ceil()
}

/// Every rank to every other at once, as much to each of them: over its own link to those in its node, and over its part of the
/// node's adapters to the others.
fn pairs(bytes: f64, members: Members, device: &Device) -> f64 {
    let (here, n) = (in_node(members, device), members.count);
    let to_each = bytes / (n as f64 * n as f64);
    let way = |link: Link, others: usize, rate: f64| match others {
        0 => 0.0,
        others => to_each * others as f64 / rate + link.latency_s,
    };
    let (link, network) = (device.link, device.network);
    let own = network.rate() / device.devices_per_node as f64;
    way(link, here - 1, link.rate()).max(way(network, n - here, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::group::Group;

    /// What leaves a node is what makes it slow: as many bytes a rank, within a node and over four of them.
    #[test]
    fn an_all_to_all_takes_what_its_slowest_way_takes() {
        let device = Device::named("h100").unwrap();
        let time = |count, stride| {
            let bytes = 1_000_000_000 * count as u128;
            let collective = Collective {
                group: Group::Ep,
                verb: Verb::AllToAll,
                bytes,
            };
            seconds(&collective, Members { count, stride }, &device)
        };
        assert_eq!(time(1, 1), 0.0);
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
        // Of a gigabyte, an eighth stays where it is.
        let within = 7.0 / 8.0 * 1e9 / device.link.rate();
        assert!(near(time(8, 1), within), "{} {within}", time(8, 1));
        // Three quarters go to other nodes, by the adapter of each rank; and all but its own where every rank has a node.
        let own = device.network.rate() / 8.0;
        assert!(near(time(32, 1), 0.75 * 1e9 / own), "{}", time(32, 1));
        assert!(near(time(4, 8), 0.75 * 1e9 / own), "{}", time(4, 8));
    }
}
