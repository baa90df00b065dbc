//! What this rank knows of the others: who left, who failed, and why.
//!
//! News comes from the store's connection and from whoever notices a death first; everyone who waits for a peer asks
//! here, so that the first cause is what every rank reports.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::collective::Site;
use crate::error::{CommError, Result};

/// How long a noticed death waits for the message that explains it. A rank that aborts says so before it exits, but
/// its exit can be seen sooner than its message arrives.
const EXPLANATION_WAIT: Duration = Duration::from_millis(250);

const NO_STEP: u64 = u64::MAX;

/// How a rank ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// It said goodbye. Only who still waits for it is concerned.
    Finished,
    /// Its connection broke.
    Lost,
    /// Nothing came from its host for as long as ranks wait for each other: a cut link, or a host without power.
    Silent,
    /// It failed and gave this reason.
    Aborted(String),
}

/// The fates of all ranks of the world, and the step that labels errors.
pub(crate) struct Health {
    step: AtomicU64,
    /// How long ranks wait for each other.
    timeout: Duration,
    /// True once there is any news; until then waiting costs one load.
    has_news: AtomicBool,
    news: Mutex<News>,
    changed: Condvar,
}

#[derive(Default)]
struct News {
    fates: Vec<(usize, Fate)>,
    /// The first rank that failed, as opposed to finished.
    first_failed: Option<usize>,
}

impl Health {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            step: AtomicU64::new(NO_STEP),
            timeout,
            has_news: AtomicBool::new(false),
            news: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    pub(crate) fn step(&self) -> Option<u64> {
        let step = self.step.load(Ordering::Relaxed);
        (step != NO_STEP).then_some(step)
    }

    /// Records how `rank` ended. The first word on a rank stands, but a reason replaces a mere loss.
    pub(crate) fn report(&self, rank: usize, fate: Fate) {
        let mut news = self.news.lock();
        match news.fates.iter_mut().find(|(known, _)| *known == rank) {
            None => {
                if fate != Fate::Finished {
                    news.first_failed.get_or_insert(rank);
                }
                news.fates.push((rank, fate));
            }
            Some((_, known)) if matches!(fate, Fate::Aborted(_)) && *known == Fate::Lost => {
                *known = fate;
            }
            Some(_) => {}
        }
        self.has_news.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Fails when waiting on is pointless: some rank of the world failed, or one of `awaited` has left.
    pub(crate) fn check(&self, awaited: &[usize], site: &dyn Fn() -> Site) -> Result<()> {
        if !self.has_news.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.news.lock().verdict(awaited) {
            None => Ok(()),
            Some((rank, fate)) => Err(self.error(rank, &fate, site())),
        }
    }

    /// The error for `rank`, whose death was just seen, with the reason if one arrives soon.
    pub(crate) fn explain(&self, rank: usize, site: Site) -> CommError {
        let deadline = Instant::now() + EXPLANATION_WAIT;
        let mut news = self.news.lock();
        loop {
            if let Some((rank, fate)) = news.verdict(&[rank]) {
                // A lost connection may still be followed by the reason, but not the other way round.
                if fate != Fate::Lost || Instant::now() >= deadline {
                    return self.error(rank, &fate, site);
                }
            }
            let Some(left) = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            else {
                let (rank, fate) = news.verdict(&[rank]).unwrap_or((rank, Fate::Lost));
                return self.error(rank, &fate, site);
            };
            self.changed.wait_for(&mut news, left);
        }
    }

    fn error(&self, rank: usize, fate: &Fate, site: Site) -> CommError {
        match fate {
            Fate::Finished | Fate::Lost => CommError::PeerLeft { rank, site },
            Fate::Silent => CommError::Timeout {
                ranks: vec![rank],
                timeout: self.timeout,
                site,
            },
            Fate::Aborted(reason) => CommError::PeerAborted {
                rank,
                reason: reason.clone(),
                site,
            },
        }
    }
}

impl News {
    fn verdict(&self, awaited: &[usize]) -> Option<(usize, Fate)> {
        let fate_of = |rank: usize| self.fates.iter().find(|(known, _)| *known == rank).cloned();
        if let Some(failed) = self.first_failed {
            return fate_of(failed);
        }
        awaited.iter().find_map(|&rank| fate_of(rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Collective;

    const TIMEOUT: Duration = Duration::from_secs(8);

    fn site() -> Site {
        Site {
            collective: Collective::Barrier,
            sequence: 1,
            group: "g".into(),
            step: None,
        }
    }

    #[test]
    fn finished_ranks_concern_only_who_waits_for_them() {
        let health = Health::new(TIMEOUT);
        assert!(health.check(&[1], &site).is_ok());
        health.report(2, Fate::Finished);
        // Its connection ends after its goodbye; that is no news.
        health.report(2, Fate::Lost);
        assert!(health.check(&[1], &site).is_ok());
        assert!(health.check(&[1, 2], &site).is_err());
    }

    #[test]
    fn the_first_failure_is_what_everyone_reports() {
        let health = Health::new(TIMEOUT);
        health.report(3, Fate::Lost);
        health.report(1, Fate::Finished);
        let error = health.check(&[1], &site).unwrap_err();
        assert!(error.to_string().starts_with("rank 3 left"), "{error}");
        health.report(3, Fate::Aborted("the loss is NaN".into()));
        let error = health.explain(1, site());
        assert!(
            error
                .to_string()
                .starts_with("rank 3 aborted: the loss is NaN"),
            "{error}"
        );
    }

    #[test]
    fn a_silent_host_did_not_leave() {
        let health = Health::new(TIMEOUT);
        health.report(0, Fate::Silent);
        let error = health.explain(0, site());
        assert!(
            error
                .to_string()
                .starts_with("no answer from rank 0 within 8 s"),
            "{error}"
        );
        assert!(!error.is_secondary(), "nobody else knows better");
    }

    #[test]
    fn a_death_without_a_word_is_explained_after_a_short_wait() {
        let error = Health::new(TIMEOUT).explain(4, site());
        assert!(
            matches!(error, CommError::PeerLeft { rank: 4, .. }),
            "{error}"
        );
    }
}
