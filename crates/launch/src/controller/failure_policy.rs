//! Whether to start again after a failure.

use super::{Backoff, Failure};
use std::time::Duration;

/// Counts failures against `max_failures`, as Ray Train's default policy does, except that progress forgives: the count
/// starts again when an attempt has come further than all before it, which is a new checkpoint or a step beyond the
/// best so far. A fault that always strikes at the same step is thus given up after `max_failures` restarts, and rare
/// faults in a long run are not added up.
#[derive(Debug)]
pub(super) struct FailurePolicy {
    max_failures: i64,
    backoff: Backoff,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Restart { delay: Duration },
    GiveUp,
}

impl FailurePolicy {
    pub(super) fn new(max_failures: i64, backoff: Backoff) -> Self {
        Self {
            max_failures,
            backoff,
            failures: 0,
        }
    }

    /// Failures since the last progress.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn progressed(&mut self) {
        self.failures = 0;
    }

    pub(super) fn decide(&mut self, failure: &Failure) -> Decision {
        self.failures = self.failures.saturating_add(1);
        let within_limit = self.max_failures == -1 || i64::from(self.failures) <= self.max_failures;
        if within_limit && failure.may_pass() {
            Decision::Restart {
                delay: self.backoff.after(self.failures),
            }
        } else {
            Decision::GiveUp
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::tests::{usage_failure, worker_failure};
    use super::{Backoff, Decision, FailurePolicy};
    use std::time::Duration;

    const BACKOFF: Backoff = Backoff {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(5),
    };

    fn decisions(policy: &mut FailurePolicy, count: usize) -> Vec<Option<u64>> {
        (0..count)
            .map(|_| match policy.decide(&worker_failure()) {
                Decision::Restart { delay } => Some(delay.as_secs()),
                Decision::GiveUp => None,
            })
            .collect()
    }

    #[test]
    fn failures_up_to_the_limit_are_restarted_after_doubling_pauses() {
        assert_eq!(decisions(&mut FailurePolicy::new(0, BACKOFF), 1), [None]);
        assert_eq!(
            decisions(&mut FailurePolicy::new(2, BACKOFF), 3),
            [Some(1), Some(2), None]
        );
        assert_eq!(
            decisions(&mut FailurePolicy::new(-1, BACKOFF), 5),
            [Some(1), Some(2), Some(4), Some(5), Some(5)]
        );
        assert_eq!(BACKOFF.after(u32::MAX), BACKOFF.max);
    }

    #[test]
    fn progress_forgives() {
        let mut policy = FailurePolicy::new(1, BACKOFF);
        for _ in 0..3 {
            assert_eq!(decisions(&mut policy, 1), [Some(1)]);
            policy.progressed();
        }
        assert_eq!(decisions(&mut policy, 2), [Some(1), None]);
    }

    #[test]
    fn a_usage_error_is_never_restarted() {
        let mut policy = FailurePolicy::new(-1, BACKOFF);
        assert_eq!(policy.decide(&usage_failure()), Decision::GiveUp);
    }
}
