//! Telling whether an attempt has failed, and why.

use super::Attempt;
use crate::controller::failure::{Class, Sign, root_cause};
use crate::controller::{Failure, FailureCause};
use crate::process_table::{why_not_running, why_stopped};
use std::time::Duration;

/// How long to wait for the root cause after a sign that may be only a consequence. A dead peer is noticed within 2 s,
/// and the kernel's and the workers' own news are faster than that. Together with the grace after SIGTERM it stays
/// within the 5 s in which a failed group must be gone.
pub(super) const SETTLE: Duration = Duration::from_secs(2);

pub(super) enum Cause {
    Sign(Sign),
    Stopped { rank: usize, why: &'static str },
    Hang,
}

impl Attempt<'_, '_> {
    /// The cause of failure, once it is as certain as it will get.
    pub(super) fn failure(&self) -> Option<Cause> {
        if let (Some((class, sign)), Some(first)) =
            (root_cause(&self.signs), self.first_sign_of_failure)
        {
            // A worker that reports an error is about to exit, and knows best how to clean up.
            let is_certain = class == Class::Primary && self.workers.exit(sign.rank()).is_some();
            let nothing_more = self.workers.living().next().is_none();
            if !is_certain && !nothing_more && first.elapsed() < SETTLE {
                return None;
            }
            if class == Class::Secondary
                && let Some((rank, why)) = self.stopped_rank()
            {
                return Some(Cause::Stopped { rank, why });
            }
            return Some(Cause::Sign(sign.clone()));
        }
        let timeout = self.run.spec.hang_timeout;
        let is_stuck = !timeout.is_zero() && self.last_sign_of_life.elapsed() >= timeout;
        is_stuck.then_some(Cause::Hang)
    }

    fn stopped_rank(&self) -> Option<(usize, &'static str)> {
        self.workers
            .living()
            .find_map(|(rank, pid)| Some((rank, why_stopped(pid)?)))
    }

    pub(super) fn describe(&self, cause: Cause) -> Failure {
        let (rank, step, cause) = match cause {
            Cause::Sign(Sign::Reported(error)) => {
                let message = error.message;
                (
                    Some(error.rank),
                    error.step,
                    FailureCause::Reported { message },
                )
            }
            Cause::Sign(Sign::BadExit { rank, exit }) => {
                (Some(rank), self.ranks[rank].step, FailureCause::Died(exit))
            }
            Cause::Stopped { rank, why } => (
                Some(rank),
                self.ranks[rank].step,
                FailureCause::Stopped { why },
            ),
            Cause::Hang => {
                let timeout = self.run.spec.hang_timeout;
                let ranks = self.describe_ranks();
                (None, None, FailureCause::Hang { timeout, ranks })
            }
        };
        Failure {
            attempt: self.number,
            rank,
            step,
            cause,
            exit: rank.and_then(|rank| self.workers.exit(rank)),
            log: None,
            log_tail: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Adds what is known only when all workers are gone: late errors of other ranks, and the whole log.
    pub(super) fn completed(&self, mut failure: Failure) -> Failure {
        failure.others = self
            .signs
            .iter()
            .filter_map(|sign| match sign {
                Sign::Reported(error) if Some(error.rank) != failure.rank => Some(error.clone()),
                _ => None,
            })
            .collect();
        let Some(rank) = failure.rank else {
            return failure;
        };
        if let Some(log) = self.workers.log(rank) {
            failure.log = Some(log.path().to_owned());
            failure.log_tail = log.tail();
        }
        failure
    }

    fn describe_ranks(&self) -> Vec<String> {
        let living = self.workers.living();
        living
            .map(|(rank, pid)| {
                let state = &self.ranks[rank];
                let mut text = format!("rank {rank} (process {pid}): ");
                match (&state.step, &state.phase) {
                    (Some(step), _) => text.push_str(&format!("last finished step {step}")),
                    (None, Some(phase)) => text.push_str(phase),
                    (None, None) => text.push_str("not a word so far"),
                }
                if let Some(why) = why_not_running(pid) {
                    text.push_str(&format!(", {why}"));
                }
                text
            })
            .collect()
    }
}
