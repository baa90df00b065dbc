//! Restarts: how many, after which pauses, and from where.

use crate::bench::Bench;
use crate::script::{FaultKind, Script};
use std::collections::HashSet;
use std::time::Duration;
use tandem_launch::controller::{ControllerEvent, RunFailure, RunState};
use tandem_launch::protocol::WorkerEvent;

fn killed() -> FaultKind {
    FaultKind::Signal { number: 9 }
}

#[test]
fn one_failure_is_survived_from_the_last_checkpoint() {
    let bench = Bench::new();
    let mut script = Script::steps(6).with_fault(0, 5, 1, killed());
    script.checkpoint_every = 2;
    let mut spec = bench.spec(2, &script);
    spec.max_failures = 1;
    let seen = bench.run(&spec);
    assert!(seen.result.is_ok(), "{:?}", seen.result);
    assert_eq!(
        seen.states(),
        [
            RunState::Initializing,
            RunState::Scheduling,
            RunState::Running,
            RunState::Restarting,
            RunState::Scheduling,
            RunState::Running,
            RunState::Finished,
        ]
    );
    let steps: Vec<u64> = seen
        .events
        .iter()
        .filter_map(|event| match event {
            ControllerEvent::Worker {
                rank: 0,
                event: WorkerEvent::Progress { step, .. },
            } => Some(*step),
            _ => None,
        })
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 5, 6], "checkpoint_4 was the last");
    assert_eq!(bench.record()["last_checkpoint"], "checkpoint_6");
    let ports: HashSet<_> = bench
        .log(0)
        .lines()
        .filter(|line| line.contains("listens on"))
        .map(str::to_owned)
        .collect();
    assert_eq!(ports.len(), 2, "a fresh port for each attempt: {ports:?}");
}

#[test]
fn a_fault_that_always_strikes_at_the_same_step_is_given_up() {
    let bench = Bench::new();
    let script = Script::endless().with_fault(0, 2, u32::MAX, killed());
    let mut spec = bench.spec(1, &script);
    spec.max_failures = 2;
    let seen = bench.run(&spec);
    let pauses: Vec<_> = seen
        .restarts()
        .iter()
        .map(|(n, delay)| (*n, delay.as_millis()))
        .collect();
    assert_eq!(pauses, [(1, 20), (2, 40)]);
    let error = seen.result.as_ref().unwrap_err();
    assert!(
        matches!(
            error,
            RunFailure::Workers {
                failures: 3,
                max_failures: 2,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("after step 2 of attempt 2: killed by SIGKILL"),
        "{error}"
    );
    assert!(
        error.to_string().contains("failure 3 without progress"),
        "{error}"
    );
    assert_eq!(bench.record()["attempts"].as_array().unwrap().len(), 3);
}

#[test]
fn progress_starts_the_count_and_the_pauses_again() {
    let bench = Bench::new();
    let mut script = Script::steps(8).with_fault(0, 3, 3, killed());
    script.checkpoint_every = 2;
    if let Some(fault) = &mut script.fault {
        fault.later_each_attempt = 2;
    }
    let mut spec = bench.spec(1, &script);
    spec.max_failures = 1;
    let seen = bench.run(&spec);
    assert!(seen.result.is_ok(), "{:?}", seen.result);
    assert_eq!(seen.restarts(), [(1, Duration::from_millis(20)); 3]);
    assert_eq!(bench.record()["last_step"], 8);
}

#[test]
fn without_a_limit_restarts_go_on() {
    let bench = Bench::new();
    let script = Script::steps(3).with_fault(0, 0, 5, killed());
    let mut spec = bench.spec(1, &script);
    spec.max_failures = -1;
    spec.backoff.max = Duration::from_millis(50);
    let seen = bench.run(&spec);
    assert!(seen.result.is_ok(), "{:?}", seen.result);
    let pauses: Vec<_> = seen
        .restarts()
        .iter()
        .map(|(n, delay)| (*n, delay.as_millis()))
        .collect();
    assert_eq!(pauses, [(1, 20), (2, 40), (3, 50), (4, 50), (5, 50)]);
}

#[test]
fn a_hang_is_restarted_like_any_failure() {
    let bench = Bench::new();
    let script = Script::steps(3).with_fault(0, 1, 1, FaultKind::Hang);
    let mut spec = bench.spec(1, &script);
    spec.max_failures = 1;
    spec.hang_timeout = Duration::from_secs(2);
    let seen = bench.run(&spec);
    assert!(seen.result.is_ok(), "{:?}", seen.result);
    assert_eq!(seen.restarts().len(), 1);
}
