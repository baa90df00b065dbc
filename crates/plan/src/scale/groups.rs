//! The ranks of a run on their hosts, and how the members of each group are joined. The groups are those that a worker makes
//! (`Ranks::join` in `crates/run/src/ranks.rs`).

/// How groups move data, as a run is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// NCCL, whose own connections and descriptors nobody here counts.
    Nccl,
    /// Shared memory where the members share a host, TCP where they do not: CPUs, and GPUs without NCCL.
    Host,
    /// TCP everywhere.
    Tcp,
}

/// How the members of one group are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// NCCL.
    Nccl,
    /// A segment of memory, and a descriptor of the next member's process.
    SharedMemory,
    /// A connection of every member to every other. `tried` is whether they looked for shared memory first.
    Tcp {
        /// Whether they told each other where they are.
        tried: bool,
    },
}

/// Where ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hosts {
    /// All ranks.
    pub ranks: usize,
    /// Those of one host; the last may have fewer.
    pub each: usize,
    /// Ranks of a row.
    pub tp: usize,
    /// Ranks over which experts are spread; 1 where they are not.
    pub experts: usize,
    /// How they talk.
    pub wire: Wire,
}

/// Groups of one kind that are joined in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// As in errors.
    pub name: &'static str,
    /// Members of each.
    pub size: usize,
    /// How many groups.
    pub count: usize,
    /// How they are joined.
    pub way: Way,
}

impl Hosts {
    /// All groups of more than one member.
    pub fn groups(&self) -> Vec<Groups> {
        let (n, tp, experts) = (self.ranks, self.tp, self.experts);
        // Size, and ranks from a member to the next.
        let kinds = [
            ("ep", experts, 1),
            ("edp", if experts > 1 { n / experts } else { 1 }, experts),
            ("world", n, 1),
            ("tp", tp, 1),
            ("dp", n / tp, tp),
        ];
        let kinds = kinds.into_iter().filter(|(_, size, _)| *size > 1);
        kinds
            .flat_map(|(name, size, stride)| self.of_kind(name, size, stride))
            .collect()
    }

    fn of_kind(&self, name: &'static str, size: usize, stride: usize) -> Vec<Groups> {
        let all = self.ranks / size;
        let joined = |count, way| Groups {
            name,
            size,
            count,
            way,
        };
        let groups = match self.wire {
            Wire::Nccl => vec![joined(all, Way::Nccl)],
            Wire::Tcp => vec![joined(all, Way::Tcp { tried: false })],
            Wire::Host => {
                let reach = (size - 1) * stride;
                // Those of neighbours are side by side; the others begin with the ranks of the first row.
                let first = |group: usize| match stride {
                    1 => group * size,
                    _ => group,
                };
                let is_here = |group: &usize| {
                    let first = first(*group);
                    first / self.each == (first + reach) / self.each
                };
                let here = (0..all).filter(is_here).count();
                let there = Way::Tcp { tried: true };
                vec![joined(here, Way::SharedMemory), joined(all - here, there)]
            }
        };
        groups.into_iter().filter(|it| it.count > 0).collect()
    }

    /// Connections of the rank that has most, in all groups over TCP: one to every other member.
    pub fn connections(&self) -> usize {
        self.largest_by(|way| matches!(way, Way::Tcp { .. }), |size| size - 1)
    }

    /// Connections of a rank in the group of all ranks over TCP.
    pub fn connections_to_all(&self) -> usize {
        let groups = self.groups();
        let over_tcp = |it: &&Groups| it.name == "world" && matches!(it.way, Way::Tcp { .. });
        groups.iter().find(over_tcp).map_or(0, |it| it.size - 1)
    }

    /// Descriptors of other processes that a rank has: of the next member of each group in shared memory
    /// (`crates/comm/src/transport/shm/neighbour.rs`).
    pub fn watched(&self) -> usize {
        self.largest_by(|way| way == Way::SharedMemory, |_| 1)
    }

    /// The sum of `each` over the kinds of groups of which any is joined in such a way.
    pub(super) fn largest_by(
        &self,
        is: impl Fn(Way) -> bool,
        each: impl Fn(usize) -> usize,
    ) -> usize {
        let groups = self.groups();
        let of_way = groups.iter().filter(|it| is(it.way));
        of_way.map(|it| each(it.size)).sum()
    }
}

#[cfg(test)]
impl Hosts {
    /// As the tests of many real ranks have them: hosts of 16, rows of four.
    pub(super) fn of_16(ranks: usize) -> Self {
        Self {
            ranks,
            each: 16,
            tp: 4,
            experts: 1,
            wire: Wire::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_HOSTS: Hosts = Hosts {
        ranks: 16,
        each: 8,
        tp: 4,
        experts: 2,
        wire: Wire::Host,
    };

    fn shown(hosts: Hosts) -> Vec<(&'static str, usize, usize, Way)> {
        let groups = hosts.groups().into_iter();
        groups
            .map(|it| (it.name, it.size, it.count, it.way))
            .collect()
    }

    #[test]
    fn groups_within_a_host_share_memory_and_others_do_not() {
        let (here, there) = (Way::SharedMemory, Way::Tcp { tried: true });
        let expected = [
            ("ep", 2, 8, here),
            ("edp", 8, 2, there),
            ("world", 16, 1, there),
            ("tp", 4, 4, here),
            ("dp", 4, 4, there),
        ];
        assert_eq!(shown(TWO_HOSTS), expected);
        assert_eq!(TWO_HOSTS.connections(), 7 + 15 + 3);
        assert_eq!(
            (TWO_HOSTS.connections_to_all(), TWO_HOSTS.watched()),
            (15, 2)
        );
        // Every second row lies across the edge of a host.
        let uneven = Hosts {
            each: 6,
            experts: 1,
            ranks: 12,
            ..TWO_HOSTS
        };
        let rows = shown(uneven).into_iter().filter(|it| it.0 == "tp");
        assert_eq!(
            rows.collect::<Vec<_>>(),
            [("tp", 4, 2, here), ("tp", 4, 1, there)]
        );
        let one = Hosts {
            ranks: 1,
            tp: 1,
            experts: 1,
            ..TWO_HOSTS
        };
        assert_eq!(shown(one), []);
    }
}
