//! Failures of every kind: the root cause comes first, and no process is left.

use crate::bench::Bench;
use crate::script::{FaultKind, Script};
use std::time::Duration;
use tandem_launch::controller::{FailureCause, RunState, WorkerExit};

fn own_error() -> FaultKind {
    FaultKind::Error {
        message: "the loss is NaN".into(),
        exit_code: 1,
    }
}

const SIGKILL: i32 = 9;

#[test]
fn a_workers_own_words_rank_and_step_come_first() {
    let bench = Bench::new();
    let script = Script::endless().with_fault(2, 3, 1, own_error());
    let seen = bench.run(&bench.spec(4, &script));
    assert_eq!(
        seen.states(),
        [
            RunState::Initializing,
            RunState::Scheduling,
            RunState::Running,
            RunState::Errored
        ]
    );
    let failure = seen.failure();
    assert_eq!((failure.rank, failure.step), (Some(2), Some(3)));
    assert_eq!(failure.exit, Some(WorkerExit::Code(1)));
    let error = seen.result.as_ref().unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("rank 2 failed at step 3: the loss is NaN (exit code 1)\n"),
        "{error}"
    );
    assert!(
        error.to_string().contains("logs/rank_2.log\n  | "),
        "{error}"
    );
    assert!(error.to_string().ends_with("| about to fail"), "{error}");
    assert_eq!(error.exit_code(), 1);
    assert_eq!(
        bench.record()["reason"].as_str(),
        Some(failure.to_string().as_str())
    );
}

#[test]
fn secondary_errors_that_come_earlier_are_shown_later() {
    let bench = Bench::new();
    let mut script = Script::endless().with_fault(1, 2, 1, own_error());
    script.peers_notice = true;
    let seen = bench.run(&bench.spec(3, &script));
    let failure = seen.failure();
    assert_eq!(failure.rank, Some(1));
    assert_eq!(
        failure.cause,
        FailureCause::Reported {
            message: "the loss is NaN".into()
        }
    );
    let mut others: Vec<_> = failure
        .others
        .iter()
        .map(|error| (error.rank, error.secondary))
        .collect();
    others.sort_unstable();
    assert_eq!(others, [(0, true), (2, true)]);
}

#[test]
fn a_killed_worker_is_named_with_its_signal() {
    let bench = Bench::new();
    let script = Script::endless().with_fault(1, 2, 1, FaultKind::Signal { number: SIGKILL });
    let seen = bench.run(&bench.spec(3, &script));
    let failure = seen.failure();
    assert_eq!((failure.rank, failure.step), (Some(1), Some(2)));
    assert!(
        failure
            .to_string()
            .contains("killed by SIGKILL (perhaps out of memory)"),
        "{failure}"
    );
}

#[test]
fn silent_exits_and_panics_show_the_log() {
    for (kind, text) in [
        (FaultKind::Exit { code: 9 }, "exit code 9"),
        (FaultKind::Panic, "exit code 101 (a Rust panic)"),
    ] {
        let bench = Bench::new();
        let script = Script::endless().with_fault(0, 0, 1, kind);
        let seen = bench.run(&bench.spec(2, &script));
        let message = seen.failure().to_string();
        assert!(
            message.contains(text) && message.contains("| about to fail"),
            "{message}"
        );
    }
}

#[test]
fn a_usage_error_is_not_restarted_and_keeps_its_code() {
    let bench = Bench::new();
    let fault = FaultKind::Error {
        message: "zero_stage 3 is FSDP".into(),
        exit_code: 2,
    };
    let mut spec = bench.spec(2, &Script::endless().with_fault(0, 0, u32::MAX, fault));
    spec.max_failures = -1;
    let seen = bench.run(&spec);
    assert!(seen.restarts().is_empty());
    assert_eq!(seen.result.unwrap_err().exit_code(), 2);
}

#[test]
fn a_hang_says_what_every_rank_did_last() {
    let bench = Bench::new();
    let mut script = Script::endless().with_fault(0, 2, 1, FaultKind::Hang);
    script.step_ms = 1;
    let mut spec = bench.spec(1, &script);
    spec.hang_timeout = Duration::from_secs(2);
    let seen = bench.run(&spec);
    let failure = seen.failure();
    assert_eq!(failure.rank, None);
    let message = failure.to_string();
    assert!(
        message.starts_with("the workers are stuck: no progress for 2 s"),
        "{message}"
    );
    assert!(message.contains("last finished step 2"), "{message}");
}

#[test]
fn a_stopped_worker_is_found_when_the_others_only_complain() {
    let bench = Bench::new();
    let mut script = Script::endless().with_fault(1, 2, 1, FaultKind::Stop);
    script.peers_notice = true;
    let seen = bench.run(&bench.spec(3, &script));
    let failure = seen.failure();
    assert_eq!(failure.rank, Some(1));
    assert!(
        matches!(failure.cause, FailureCause::Stopped { .. }),
        "{failure}"
    );
    assert_eq!(failure.others.len(), 2);
}

#[test]
fn a_stopped_group_is_a_hang_that_says_so() {
    let bench = Bench::new();
    let script = Script::endless().with_fault(0, 1, 1, FaultKind::Stop);
    let mut spec = bench.spec(1, &script);
    spec.hang_timeout = Duration::from_secs(2);
    let seen = bench.run(&spec);
    let message = seen.failure().to_string();
    assert!(message.contains("stopped by a signal"), "{message}");
}

#[test]
fn workers_deaf_to_sigterm_and_their_children_are_ended_too() {
    let bench = Bench::new();
    let mut script = Script::endless().with_fault(1, 2, 1, own_error());
    script.deaf = true;
    script.with_child = true;
    let seen = bench.run(&bench.spec(3, &script));
    assert_eq!(seen.failure().rank, Some(1));
    assert!(bench.log(0).contains("child "), "the child was started");
}

#[test]
fn children_of_workers_that_ended_well_are_ended_too() {
    let bench = Bench::new();
    let mut script = Script::steps(1);
    script.with_child = true;
    assert!(bench.run(&bench.spec(1, &script)).result.is_ok());
    assert!(bench.log(0).contains("child "), "the child was started");
}
