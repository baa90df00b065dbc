//! Meeting: nobody goes on before all have come.
//!
//! Arriving adds one to a shared counter; the meeting is complete when the counter reaches members x meetings. While
//! ranks have a core each, waiting is reading that counter, without system calls. After a short while, or at once when
//! ranks share cores or computation goes on beside, a waiter sleeps in the kernel (a futex on the counter); the last to
//! arrive wakes the sleepers, and makes that system call only if there are any.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::futex;

use crate::collective::Signature;
use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::queue::Place;
use crate::transport::shm::neighbour::Neighbour;
use crate::transport::shm::segment::Segment;

/// How long to sleep before looking whether the peers are still there.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// How long a waiter that has a core to itself, and nothing else to do, looks at the counter before it sleeps. Longer than
/// it takes to wake a sleeper (0.1 ms in a virtual machine): otherwise one rank's nap makes the next rank nap, and they take
/// turns for ever. Giving the core away between looks would be polite, but Linux takes it for a wish to come last.
const PATIENCE: Duration = Duration::from_millis(1);

/// Looks between two looks at the clock.
const LOOKS: u32 = 64;

/// This rank's side of a group's meetings.
pub(super) struct Meeting {
    context: Arc<GroupContext>,
    segment: Arc<Segment>,
    neighbour: Neighbour,
    /// Meetings that this rank has arrived at.
    arrived: u32,
    has_own_core: bool,
}

impl Meeting {
    pub(super) fn new(
        context: Arc<GroupContext>,
        segment: Arc<Segment>,
        neighbour: Neighbour,
    ) -> Self {
        let has_own_core =
            context.ranks_on_host <= std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            context,
            segment,
            neighbour,
            arrived: 0,
            has_own_core,
        }
    }

    /// Says that this rank has come. What it wrote before is visible to whoever has waited for the meeting.
    pub(super) fn arrive(&mut self) {
        self.arrived = self.arrived.wrapping_add(1);
        let own = self.segment.member(self.context.rank);
        own.arrivals.store(self.arrived, Ordering::Relaxed);
        let arrivals = self.segment.arrivals();
        // Sequentially consistent, like the sleeper's pair in `sleep`: either the sleeper sees this arrival, or this
        // rank sees the sleeper.
        let before = arrivals.fetch_add(1, Ordering::SeqCst);
        let is_last = before.wrapping_add(1) == self.target();
        if is_last && self.segment.sleepers().load(Ordering::SeqCst) > 0 {
            wake_all(arrivals);
        }
    }

    /// Returns when all have come to the meeting at which this rank arrived last.
    pub(super) fn wait(&self, signature: &Signature, place: Place) -> Result<()> {
        let begin = Instant::now();
        let is_patient = place == Place::Inline && self.has_own_core;
        loop {
            for _ in 0..LOOKS {
                if self.is_complete() {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if !is_patient || begin.elapsed() >= PATIENCE {
                return self.sleep(signature, begin);
            }
        }
    }

    /// Tells the others that this rank will not come any more.
    pub(super) fn leave(&self) {
        self.close(self.context.rank);
    }

    /// Tells all that `member` will not come any more.
    fn close(&self, member: usize) {
        let line = self.segment.member(member);
        line.closed.store(1, Ordering::SeqCst);
        wake_all(self.segment.arrivals());
    }

    fn sleep(&self, signature: &Signature, begin: Instant) -> Result<()> {
        let sleepers = self.segment.sleepers();
        sleepers.fetch_add(1, Ordering::SeqCst);
        let outcome = loop {
            let arrivals = self.segment.arrivals().load(Ordering::SeqCst);
            if self.is_complete() {
                break Ok(());
            }
            let timeout = LOOK_AROUND.try_into().ok();
            let slept = futex::wait(
                self.segment.arrivals(),
                futex::Flags::empty(),
                arrivals,
                timeout.as_ref(),
            );
            if self.is_complete() {
                break Ok(());
            }
            // Woken, or somebody arrived in between: look again. Otherwise time has passed, or a signal came.
            let must_look = slept.is_err_and(|error| error != rustix::io::Errno::AGAIN)
                || self.late().any(|member| self.has_closed(member));
            if !must_look {
                continue;
            }
            let looked = self.look_around(signature, begin);
            if looked.is_err() {
                // Complete after all: then the peer left after it had done its part, which is its right.
                break if self.is_complete() { Ok(()) } else { looked };
            }
        };
        sleepers.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    /// Fails when it is clear, or must be assumed, that not all will come.
    fn look_around(&self, signature: &Signature, begin: Instant) -> Result<()> {
        let late: Vec<usize> = self.late().collect();
        let ranks: Vec<usize> = late.iter().map(|&m| self.context.ranks[m]).collect();
        self.context.check_waiting(&ranks, signature)?;
        if let Some(member) = self.neighbour.ended()
            && !self.has_closed(member)
        {
            self.close(member);
        }
        if let Some(member) = late.into_iter().find(|&member| self.has_closed(member)) {
            return Err(self.context.peer_left(member, signature));
        }
        if begin.elapsed() < self.context.timeout {
            return Ok(());
        }
        Err(CommError::Timeout {
            ranks,
            timeout: self.context.timeout,
            site: self.context.site(signature),
        })
    }

    /// Members that have not come yet.
    fn late(&self) -> impl Iterator<Item = usize> {
        (0..self.context.size()).filter(|&member| {
            let arrivals = self.segment.member(member).arrivals.load(Ordering::Acquire);
            // Counters wrap around; members are never more than one meeting apart.
            (arrivals.wrapping_sub(self.arrived) as i32) < 0
        })
    }

    fn has_closed(&self, member: usize) -> bool {
        self.segment.member(member).closed.load(Ordering::Acquire) != 0
    }

    fn target(&self) -> u32 {
        self.arrived.wrapping_mul(self.context.size() as u32)
    }

    fn is_complete(&self) -> bool {
        let arrivals = self.segment.arrivals().load(Ordering::Acquire);
        arrivals.wrapping_sub(self.target()) as i32 >= 0
    }
}

fn wake_all(word: &AtomicU32) {
    // Fails only for an address that is not mapped.
    let _woken = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
}
