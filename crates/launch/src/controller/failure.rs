//! One attempt's failure: which rank failed first, and why.
//!
//! When one rank dies, the others soon fail too, because their collectives lack a peer, and often they are quicker to
//! say so. Their errors are *secondary*. The root cause is the earliest sign of the best class:
//!
//! 1. an error that a rank reports as its own, or a rank killed by a signal that reported nothing;
//! 2. a rank that exited with a bad code and reported nothing;
//! 3. when all who speak only complain of others: a rank that is stopped, else the first complaint.

use super::WorkerExit;
use crate::exit_code;
use crate::output::redacted;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Why an attempt failed. Displayed as a block of lines, the root cause first.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The attempt, counted from 0.
    pub attempt: u32,
    /// The rank that failed first; none for a hang of the whole group.
    pub rank: Option<usize>,
    /// The optimizer step that it was in when it reported the error; otherwise the last one that it finished.
    pub step: Option<u64>,
    /// What happened to it.
    pub cause: FailureCause,
    /// How its process ended; none when it had to be ended.
    pub exit: Option<WorkerExit>,
    /// Its log.
    pub log: Option<PathBuf>,
    /// The log's last lines.
    pub log_tail: Vec<String>,
    /// The errors that other ranks reported.
    pub others: Vec<RankError>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureCause {
    /// The worker reported an error.
    Reported {
        /// Its words.
        message: String,
    },
    /// The worker ended without a word.
    Died(WorkerExit),
    /// The worker does not run, and others waited for it in vain.
    Stopped {
        /// What the kernel says about it.
        why: &'static str,
    },
    /// No rank gave a sign of life.
    Hang {
        /// For how long.
        timeout: Duration,
        /// What is known of each rank.
        ranks: Vec<String>,
    },
}

/// An error that a worker reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankError {
    /// The rank that failed.
    pub rank: usize,
    /// The optimizer step it was in.
    pub step: Option<u64>,
    /// Its words.
    pub message: String,
    /// Whether it only follows from another rank's failure.
    pub secondary: bool,
    /// The exit code that it announced.
    pub exit_code: i32,
}

impl Failure {
    /// Whether starting again can help. It cannot when a worker found the command line or configuration wrong.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.exit != Some(WorkerExit::Code(exit_code::USAGE))
    }
}

/// A sign that something went wrong, in the order in which the controller saw them.
#[derive(Debug, Clone)]
pub(super) enum Sign {
    Reported(RankError),
    BadExit { rank: usize, exit: WorkerExit },
}

/// How sure it is that a sign is the root cause. Smaller is surer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Primary,
    Silent,
    Secondary,
}

/// The best explanation among `signs`.
pub(super) fn root_cause(signs: &[Sign]) -> Option<(Class, &Sign)> {
    let reported = |rank: usize| {
        signs
            .iter()
            .any(|sign| matches!(sign, Sign::Reported(error) if error.rank == rank))
    };
    signs
        .iter()
        .filter_map(|sign| {
            let class = match sign {
                Sign::Reported(error) if error.secondary => Class::Secondary,
                Sign::Reported(_) => Class::Primary,
                Sign::BadExit { rank, .. } if reported(*rank) => return None,
                Sign::BadExit {
                    exit: WorkerExit::Signal { .. },
                    ..
                } => Class::Primary,
                Sign::BadExit { .. } => Class::Silent,
            };
            Some((class, sign))
        })
        // The first of equals: min_by_key keeps the earliest.
        .min_by_key(|(class, _)| *class)
}

impl Sign {
    pub(super) fn rank(&self) -> usize {
        match self {
            Self::Reported(error) => error.rank,
            Self::BadExit { rank, .. } => *rank,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(formatter, "{} failed", named(&self.ranks_alike(rank)))?,
            None => formatter.write_str("the workers are stuck")?,
        }
        if let Some(step) = self.step {
            // A worker that reports an error knows the step it was in; of all others only the last finished one is known.
            let word = match self.cause {
                FailureCause::Reported { .. } => "at",
                _ => "after",
            };
            write!(formatter, " {word} step {step}")?;
        }
        if self.attempt > 0 {
            write!(formatter, " of attempt {}", self.attempt)?;
        }
        write!(formatter, ": {}", self.cause)?;
        if let (Some(exit), FailureCause::Reported { .. }) = (self.exit, &self.cause) {
            write!(formatter, " ({exit})")?;
        }
        for (message, ranks) in self.others_by_message() {
            if !self.is_own(message) {
                write!(formatter, "\n  then {}: {message}", named(&ranks))?;
            }
        }
        if let Some(log) = &self.log {
            write!(formatter, "\n  log: {}", log.display())?;
        }
        for line in self.news_of_log() {
            write!(formatter, "\n  | {line}")?;
        }
        Ok(())
    }
}

impl Failure {
    /// Whether the rank that failed first said this.
    fn is_own(&self, message: &str) -> bool {
        matches!(&self.cause, FailureCause::Reported { message: own } if own == message)
    }

    /// `rank`, and all that said the same.
    fn ranks_alike(&self, rank: usize) -> Vec<usize> {
        let alike = self
            .others
            .iter()
            .filter(|other| self.is_own(&other.message));
        let mut ranks: Vec<usize> = alike.map(|other| other.rank).collect();
        ranks.push(rank);
        ranks.sort_unstable();
        ranks
    }

    /// What other ranks reported, and which: what all say is said once.
    fn others_by_message(&self) -> Vec<(&str, Vec<usize>)> {
        let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
        for other in &self.others {
            match groups.iter_mut().find(|(text, _)| *text == other.message) {
                Some((_, ranks)) => ranks.push(other.rank),
                None => groups.push((&other.message, vec![other.rank])),
            }
        }
        groups
    }

    /// The log's last lines without the worker's own report of the error at its end, which is shown already.
    fn news_of_log(&self) -> &[String] {
        let FailureCause::Reported { message } = &self.cause else {
            return &self.log_tail;
        };
        // The log has no secrets.
        let message = redacted(message);
        let mut rest = self.log_tail.as_slice();
        let mut report = message.lines().rev().peekable();
        while let (Some(line), Some((last, before))) = (report.next(), rest.split_last()) {
            let is_first = report.peek().is_none();
            let is_same = match is_first {
                // `rank 3: ` or `error: ` comes first.
                true => last.ends_with(line),
                false => last == line,
            };
            if !is_same {
                return &self.log_tail;
            }
            rest = before;
        }
        rest
    }
}

/// `rank 3`, `ranks 0, 1 and 3`, or `ranks 0-7`.
fn named(ranks: &[usize]) -> String {
    let mut words = Vec::new();
    for run in ranks.chunk_by(|one, next| one + 1 == *next) {
        match run {
            [first, _, .., last] => words.push(format!("{first}-{last}")),
            few => words.extend(few.iter().map(usize::to_string)),
        }
    }
    match words.split_last() {
        Some((last, [])) if ranks.len() == 1 => format!("rank {last}"),
        Some((last, [])) => format!("ranks {last}"),
        Some((last, before)) => format!("ranks {} and {last}", before.join(", ")),
        None => String::new(),
    }
}

impl fmt::Display for FailureCause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported { message } => formatter.write_str(message),
            Self::Died(exit) => write!(formatter, "{exit}"),
            Self::Stopped { why } => {
                write!(
                    formatter,
                    "its process is {why}, and the other ranks waited in vain"
                )
            }
            Self::Hang { timeout, ranks } => {
                let seconds = timeout.as_secs_f64();
                write!(formatter, "no progress for {seconds} s (--hang_timeout_s)")?;
                for rank in ranks {
                    write!(formatter, "\n  {rank}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Class, Failure, FailureCause, RankError, Sign, named, root_cause};
    use crate::controller::WorkerExit;

    pub(in crate::controller) fn worker_failure() -> Failure {
        Failure {
            attempt: 0,
            rank: Some(2),
            step: Some(17),
            cause: FailureCause::Reported {
                message: "the loss is NaN".into(),
            },
            exit: Some(WorkerExit::Code(1)),
            log: Some("/runs/a/logs/rank_2.log".into()),
            log_tail: vec!["some output".into()],
            others: vec![error(0, true)],
        }
    }

    pub(in crate::controller) fn usage_failure() -> Failure {
        Failure {
            exit: Some(WorkerExit::Code(2)),
            ..worker_failure()
        }
    }

    fn error(rank: usize, secondary: bool) -> RankError {
        let message = if secondary {
            "rank 2 left during all_reduce #8"
        } else {
            "own fault"
        };
        RankError {
            rank,
            step: Some(17),
            message: message.into(),
            secondary,
            exit_code: 1,
        }
    }

    const KILLED: WorkerExit = WorkerExit::Signal {
        signal: 9,
        core_dumped: false,
    };

    fn exit(rank: usize, exit: WorkerExit) -> Sign {
        Sign::BadExit { rank, exit }
    }

    #[test]
    fn the_root_cause_is_the_earliest_sign_of_the_best_class() {
        let secondary = |rank| Sign::Reported(error(rank, true));
        let primary = |rank| Sign::Reported(error(rank, false));
        assert!(root_cause(&[]).is_none());
        let cases = [
            (
                vec![secondary(0), secondary(1), primary(2)],
                (Class::Primary, 2),
            ),
            (vec![primary(3), primary(2)], (Class::Primary, 3)),
            (
                vec![secondary(0), exit(0, WorkerExit::Code(1)), exit(2, KILLED)],
                (Class::Primary, 2),
            ),
            (
                vec![exit(1, WorkerExit::Code(1)), secondary(0)],
                (Class::Silent, 1),
            ),
            (
                vec![exit(1, WorkerExit::Code(1)), exit(2, KILLED)],
                (Class::Primary, 2),
            ),
            (vec![secondary(1), secondary(0)], (Class::Secondary, 1)),
            // A rank that reported an error and then crashed on its way out is judged by its report.
            (
                vec![secondary(1), exit(1, KILLED), secondary(0)],
                (Class::Secondary, 1),
            ),
        ];
        for (signs, expected) in cases {
            let found = root_cause(&signs).map(|(class, sign)| (class, sign.rank()));
            assert_eq!(found, Some(expected), "{signs:?}");
        }
    }

    #[test]
    fn nothing_is_said_twice() {
        let same = |rank| RankError {
            message: "no such file\n  /data/x".into(),
            ..error(rank, false)
        };
        let all_alike = Failure {
            step: None,
            rank: Some(0),
            cause: FailureCause::Reported {
                message: same(0).message,
            },
            log_tail: vec![
                "WARN slow".into(),
                "rank 0: no such file".into(),
                "  /data/x".into(),
            ],
            others: vec![same(1), error(2, true), same(3), error(4, true)],
            ..worker_failure()
        };
        assert_eq!(
            all_alike.to_string(),
            "ranks 0, 1 and 3 failed: no such file\n  /data/x (exit code 1)\n  \
             then ranks 2 and 4: rank 2 left during all_reduce #8\n  \
             log: /runs/a/logs/rank_2.log\n  \
             | WARN slow"
        );
    }

    #[test]
    fn many_ranks_are_named_by_their_ends() {
        for (ranks, expected) in [
            (&[3][..], "rank 3"),
            (&[0, 1], "ranks 0 and 1"),
            (&[0, 1, 2, 3, 4, 5, 6, 7], "ranks 0-7"),
            (&[0, 2, 3, 4, 6, 7], "ranks 0, 2-4, 6 and 7"),
        ] {
            assert_eq!(named(ranks), expected);
        }
    }

    #[test]
    fn the_message_begins_with_the_root_cause() {
        assert_eq!(
            worker_failure().to_string(),
            "rank 2 failed at step 17: the loss is NaN (exit code 1)\n  \
             then rank 0: rank 2 left during all_reduce #8\n  \
             log: /runs/a/logs/rank_2.log\n  \
             | some output"
        );
        let killed = Failure {
            attempt: 3,
            cause: FailureCause::Died(KILLED),
            exit: Some(KILLED),
            log: None,
            log_tail: vec![],
            others: vec![],
            ..worker_failure()
        };
        assert_eq!(
            killed.to_string(),
            "rank 2 failed after step 17 of attempt 3: killed by SIGKILL (perhaps out of memory)"
        );
    }
}
