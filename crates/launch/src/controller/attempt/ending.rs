//! Ending the workers of an attempt, so that none is left.

use super::{Attempt, AttemptEnd, Stop};
use crate::controller::RunFailure;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// How long workers have between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long the kernel may take to end workers after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

impl Attempt<'_, '_> {
    /// Ends the workers because somebody asked to stop and there is no more patience.
    pub(super) fn abort(mut self, stop: Stop) -> Result<AttemptEnd, RunFailure> {
        let signal = stop.signal;
        let reason = if !stop.graceful {
            self.end_workers(Signal::TERM)?;
            match self.run.spec.graceful_stop {
                true => format!("{signal}, before training began"),
                false => format!("{signal}"),
            }
        } else if stop.requests > 1 {
            self.end_workers(Signal::KILL)?;
            format!("{signal}, then a second signal")
        } else {
            let grace = self.run.spec.stop_grace.as_secs_f64();
            self.end_workers(Signal::TERM)?;
            format!("{signal}; the workers did not save and stop within {grace} s")
        };
        Ok(AttemptEnd::Aborted { signal, reason })
    }

    /// Ends all workers: `first` (SIGTERM or SIGKILL), and SIGKILL for those that are still there after the grace.
    pub(super) fn end_workers(&mut self, first: Signal) -> Result<(), RunFailure> {
        if first != Signal::KILL {
            self.workers.signal_all(first);
            // A stopped process takes no signal but SIGKILL before it goes on.
            self.workers.signal_all(Signal::CONT);
            self.wait_for_end(TERM_GRACE, true)?;
        }
        self.workers.signal_all(Signal::KILL);
        // Nothing is quicker than SIGKILL, however often somebody asks.
        self.wait_for_end(KILL_TIMEOUT, false)?;
        let pids: Vec<u32> = self.workers.living().map(|(_, pid)| pid).collect();
        if pids.is_empty() {
            Ok(())
        } else {
            Err(RunFailure::WorkersLeft { pids })
        }
    }

    /// Until all workers are gone, the time is over, or, where that `can_hurry`, somebody asked a second time to stop.
    fn wait_for_end(&mut self, timeout: Duration, can_hurry: bool) -> Result<(), RunFailure> {
        let deadline = Instant::now() + timeout;
        let requests = |attempt: &Self| attempt.stop.map_or(0, |stop| stop.requests);
        let requests_before = requests(self);
        loop {
            self.look_around()?;
            let asked_again = can_hurry && requests_before > 0 && requests(self) > requests_before;
            if self.workers.living().next().is_none() || Instant::now() >= deadline || asked_again {
                return Ok(());
            }
            self.wait(Some(deadline))?;
        }
    }
}
