//! What comes before what. Each stream counts what it is given; a clock says of each stream up to where its work is known to be
//! done. An access to memory is in order when its clock knows all earlier accesses that it conflicts with: then events and waits
//! alone keep them apart, whatever the threads do. (Vector clocks, as race detectors for threads have them.)

use std::fmt;
use std::ops::Range;

/// A place in a stream: the number of the stream, and what it was given then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) stream: usize,
    pub(super) tick: u64,
}

/// Up to where the work of each stream comes before some point.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock(Vec<u64>);

impl Clock {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn knows(&self, moment: Moment) -> bool {
        self.0
            .get(moment.stream)
            .is_some_and(|tick| *tick >= moment.tick)
    }

    pub(super) fn learn(&mut self, moment: Moment) {
        if self.0.len() <= moment.stream {
            self.0.resize(moment.stream + 1, 0);
        }
        let tick = &mut self.0[moment.stream];
        *tick = moment.tick.max(*tick);
    }

    pub(super) fn join(&mut self, other: &Self) {
        for (stream, &tick) in other.0.iter().enumerate() {
            self.learn(Moment { stream, tick });
        }
    }
}

/// A command that reads or writes a range of addresses.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) range: Range<usize>,
    pub(super) writes: bool,
    pub(super) at: Moment,
    /// The function that asked for it.
    pub(super) what: &'static str,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            range,
            writes,
            at,
            what,
        } = self;
        let verb = if *writes { "writes" } else { "reads" };
        let bytes = range.len();
        write!(
            f,
            "{what} (command {} of stream {}), which {verb} {bytes} bytes at {:#x}",
            at.tick, at.stream, range.start
        )
    }
}

impl Access {
    fn conflicts(&self, other: &Self) -> bool {
        (self.writes || other.writes)
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

/// The accesses to one piece of memory that may still matter.
#[derive(Debug, Default)]
pub(super) struct History(Vec<Access>);

impl History {
    /// Adds an access with its clock. Returns an earlier one that it conflicts with and that does not come before it.
    pub(super) fn add(&mut self, new: Access, clock: &Clock) -> Option<Access> {
        let unordered = |old: &&Access| new.conflicts(old) && !clock.knows(old.at);
        let found = self.0.iter().find(unordered).cloned();
        // Whoever comes after this one comes after those as well.
        self.0.retain(|old| {
            let is_within = new.range.start <= old.range.start && old.range.end <= new.range.end;
            !(is_within && (new.writes || !old.writes) && clock.knows(old.at))
        });
        self.0.push(new);
        found
    }

    /// Forgets what everybody knows to be done.
    pub(super) fn forget(&mut self, known: &Clock) {
        self.0.retain(|access| !known.knows(access.at));
    }

    /// An access that `known` does not know.
    pub(super) fn unknown(&self, known: &Clock) -> Option<&Access> {
        self.0.iter().find(|access| !known.knows(access.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(range: Range<usize>, writes: bool, stream: usize, tick: u64) -> Access {
        Access {
            range,
            writes,
            at: Moment { stream, tick },
            what: "test",
        }
    }

    #[test]
    fn only_what_an_event_orders_is_in_order() {
        let mut history = History::default();
        let mut clock = Clock::new();
        assert!(history.add(access(0..8, true, 0, 1), &clock).is_none());
        assert!(history.add(access(8..16, false, 1, 1), &clock).is_none());
        let early = history.add(access(4..6, false, 1, 2), &clock);
        assert_eq!(early.expect("a conflict").at, Moment { stream: 0, tick: 1 });
        clock.learn(Moment { stream: 0, tick: 1 });
        assert!(history.add(access(4..6, false, 1, 3), &clock).is_none());
        // The write comes after the first write, but not after the reads of the other stream.
        let overtaking = history.add(access(0..8, true, 0, 2), &clock);
        assert_eq!(overtaking.expect("a conflict").at.stream, 1);
    }

    #[test]
    fn what_is_known_is_forgotten() {
        let mut history = History::default();
        let mut known = Clock::new();
        history.add(access(0..8, true, 0, 1), &known);
        assert!(history.unknown(&known).is_some());
        known.join(&{
            let mut clock = Clock::new();
            clock.learn(Moment { stream: 0, tick: 3 });
            clock
        });
        assert!(history.unknown(&known).is_none());
        history.forget(&known);
        assert!(history.unknown(&Clock::new()).is_none());
    }
}
