//! Watching collectives: what moved, how long it took, and how long somebody waited for it.
//!
//! Without an observer nothing is measured and an operation pays one load for the question.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::collective::Collective;

/// One finished operation.
#[derive(Debug, Clone)]
pub struct OperationEvent {
    /// The group's name.
    pub group: Arc<str>,
    /// What was done.
    pub collective: Collective,
    /// The operation's number in its group, from 1.
    pub sequence: u64,
    /// Size of the whole tensor (of the gathered or unreduced one, where the two sides differ).
    pub bytes: usize,
    /// When this rank began with it, which includes waiting for the peers to come.
    pub start: Instant,
    /// When it was done.
    pub end: Instant,
    /// True when the group's own thread did it, false when it ran inside `wait`.
    pub in_background: bool,
    /// Whether it succeeded.
    pub succeeded: bool,
}

/// Receives what happens in the groups of one [`World`](crate::World). Called from the thread that did the work, so it
/// should be quick.
pub trait Observer: Send + Sync {
    /// An operation ended.
    fn operation(&self, event: &OperationEvent);

    /// A caller spent the time from `start` to `end` inside `wait`: communication that no computation hid.
    fn waited(&self, group: &Arc<str>, start: Instant, end: Instant);
}

/// Totals of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupTotals {
    /// The group's name.
    pub group: Arc<str>,
    /// Operations that ended.
    pub operations: u64,
    /// Sum of their [`OperationEvent::bytes`].
    pub bytes: u64,
    /// Time inside operations, on whichever thread.
    pub inside: Duration,
    /// Time that callers spent in `wait`.
    pub waited: Duration,
}

/// An observer that adds up, group by group.
#[derive(Debug, Default)]
pub struct Totals(Mutex<Vec<GroupTotals>>);

impl Totals {
    /// The totals so far, in the order in which the groups were first seen.
    pub fn snapshot(&self) -> Vec<GroupTotals> {
        self.0.lock().clone()
    }

    fn update(&self, group: &Arc<str>, change: impl FnOnce(&mut GroupTotals)) {
        let mut all = self.0.lock();
        let index = all
            .iter()
            .position(|totals| totals.group == *group)
            .unwrap_or(all.len());
        if index == all.len() {
            all.push(GroupTotals {
                group: group.clone(),
                operations: 0,
                bytes: 0,
                inside: Duration::ZERO,
                waited: Duration::ZERO,
            });
        }
        change(&mut all[index]);
    }
}

impl Observer for Totals {
    fn operation(&self, event: &OperationEvent) {
        self.update(&event.group, |totals| {
            totals.operations += 1;
            totals.bytes += event.bytes as u64;
            totals.inside += event.end - event.start;
        });
    }

    fn waited(&self, group: &Arc<str>, start: Instant, end: Instant) {
        self.update(group, |totals| totals.waited += end - start);
    }
}
