//! Starting workers: their environment, their logs, the lock, and what cannot be started.

use crate::bench::Bench;
use crate::script::{FaultKind, Script};
use rustix::process::Signal;
use std::fs;
use std::time::Duration;
use tandem_launch::controller::{
    Controller, ControllerEvent, LaunchSpec, LockError, RunEnd, RunFailure, RunState,
};
use tandem_launch::protocol::WorkerEvent;

#[test]
fn a_run_without_trouble_goes_from_start_to_finish() {
    let bench = Bench::new();
    let seen = bench.run(&bench.spec(3, &Script::steps(4)));
    assert_eq!(
        seen.states(),
        [
            RunState::Initializing,
            RunState::Scheduling,
            RunState::Running,
            RunState::Finished
        ]
    );
    let outcome = seen.result.as_ref().unwrap();
    assert_eq!(outcome.exit_code(), 0);
    let RunEnd::Finished { metrics } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(metrics.get("rank"), Some(0.0), "the last word is rank 0's");
    for rank in 0..3 {
        let steps: Vec<u64> = seen
            .events
            .iter()
            .filter_map(|event| match event {
                ControllerEvent::Worker {
                    rank: of,
                    event: WorkerEvent::Progress { step, .. },
                } if *of == rank => Some(*step),
                _ => None,
            })
            .collect();
        assert_eq!(steps, [1, 2, 3, 4], "rank {rank}");
    }
    let record = bench.record();
    assert_eq!(record["last_step"], 4);
    assert_eq!(record["attempts"][0]["outcome"], "finished");
    assert_eq!(
        record["attempts"][0]["workers"].as_array().unwrap().len(),
        3
    );
    assert!(
        record["ended_at"].as_str().unwrap().ends_with('Z'),
        "{record}"
    );
}

#[test]
fn workers_get_torchruns_variables_and_a_port_that_is_open_already() {
    let bench = Bench::new();
    let mut spec = bench.spec(3, &Script::steps(1));
    spec.env = vec![
        ("RANK".into(), "77".into()),
        ("OMP_NUM_THREADS".into(), "5".into()),
    ];
    let seen = bench.run(&spec);
    assert!(seen.result.is_ok(), "{:?}", seen.result);
    for rank in 0..3 {
        let log = bench.log(rank);
        let expected = format!(
            "rank: {rank}, world_size: 3, local_rank: {rank}, local_world_size: 3, node_rank: 0, \
             master_addr: \"127.0.0.1\""
        );
        assert!(log.contains(&expected), "{log}");
        assert!(log.contains("threads=5"), "{log}");
        assert!(log.contains("secret: Given(..)"), "{log}");
        let rendezvous = if rank == 0 {
            "descriptor 3 listens on"
        } else {
            "rendezvous: connected"
        };
        assert!(log.contains(rendezvous), "{log}");
    }
}

#[test]
fn the_cores_are_shared_among_the_workers() {
    // A variable that is set already wins, which this test must not trip over: it clears it for the workers.
    let bench = Bench::new();
    let spec = bench.spec(64, &Script::steps(1));
    if std::env::var_os("OMP_NUM_THREADS").is_none() {
        assert!(bench.run(&spec).result.is_ok());
        let cores = std::thread::available_parallelism().unwrap().get();
        let expected = format!("threads={}", (cores / 64).max(1));
        assert!(bench.log(63).contains(&expected), "{}", bench.log(63));
    } else {
        println!("OMP_NUM_THREADS is set for the tests: its inheritance is what runs here");
        assert!(bench.run(&spec).result.is_ok());
        let expected = format!("threads={}", std::env::var("OMP_NUM_THREADS").unwrap());
        assert!(bench.log(63).contains(&expected), "{}", bench.log(63));
    }
}

#[test]
fn logs_and_history_are_appended_across_attempts_and_controllers() {
    let bench = Bench::new();
    let fault = FaultKind::Exit { code: 7 };
    let mut spec = bench.spec(2, &Script::steps(2).with_fault(1, 1, 1, fault));
    spec.max_failures = 1;
    assert!(bench.run(&spec).result.is_ok());
    assert!(bench.run(&bench.spec(2, &Script::steps(1))).result.is_ok());
    let log = bench.log(1);
    let headers = [
        "=== attempt 0, rank 1",
        "=== attempt 1, rank 1",
        "=== attempt 0, rank 1",
    ];
    let mut rest = log.as_str();
    for header in headers {
        let at = rest
            .find(header)
            .unwrap_or_else(|| panic!("{header} is missing in {log}"));
        rest = &rest[at + header.len()..];
    }
    assert!(log.contains("about to fail"), "{log}");
    let record = bench.record();
    let outcomes: Vec<_> = record["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["outcome"])
        .collect();
    assert_eq!(outcomes, ["failed", "finished", "finished"]);
    let reason = record["attempts"][0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("rank 1 failed") && reason.contains("exit code 7"),
        "{reason}"
    );
}

#[test]
fn a_second_controller_is_kept_out_and_told_by_whom() {
    let bench = Bench::new();
    let mut first = bench.start_controller(|_| {});
    first.wait_for_steps(3);
    let result = Controller::run(&bench.spec(1, &Script::steps(1)), &mut |event| {
        panic!("nothing may happen: {event:?}")
    });
    let error = result.unwrap_err();
    assert!(
        matches!(error, RunFailure::Lock(LockError::Held { .. })),
        "{error:?}"
    );
    let owner = format!("process {}", first.child.id());
    assert!(error.to_string().contains(&owner), "{error}");
    assert_eq!(error.exit_code(), 1);
    first.signal(Signal::TERM);
    let (_, _, status) = first.finish();
    assert_eq!(status.code(), Some(75), "the first one was not disturbed");
}

#[test]
fn the_lock_of_a_dead_controller_is_taken_over() {
    let bench = Bench::new();
    let mut first = bench.start_controller(|_| {});
    first.wait_for_steps(3);
    let pid = first.child.id();
    first.signal(Signal::KILL);
    first.finish();
    let seen = bench.run(&bench.spec(2, &Script::steps(1)));
    assert!(seen.result.is_ok());
    assert!(
        seen.events.iter().any(
            |event| matches!(event, ControllerEvent::LockTakenOver { owner } if owner.pid == pid)
        ),
        "{:?}",
        seen.events
    );
    assert_eq!(bench.record()["attempts"][0]["outcome"], "lost");
}

#[test]
fn orphans_of_a_dead_controller_are_ended_before_a_new_start() {
    let bench = Bench::new();
    // Workers that do not follow their parent stand for those that were too young to have asked for it.
    let mut first = bench.start_controller(|script| script.worker.outlives_parent = true);
    first.wait_for_steps(3);
    first.signal(Signal::KILL);
    first.finish();
    let orphans = bench.processes();
    assert_eq!(orphans.len(), 3);
    let seen = bench.run(&bench.spec(1, &Script::steps(1)));
    for pid in orphans {
        let text = format!("ended worker {pid}");
        let found = seen
            .events
            .iter()
            .any(|event| format!("{event:?}").contains(&text));
        assert!(found, "{text} is missing in {:?}", seen.events);
    }
}

#[test]
fn impossible_specs_are_usage_errors() {
    let bench = Bench::new();
    let spec = |num_workers, change: fn(&mut LaunchSpec)| {
        let mut spec = bench.spec(num_workers, &Script::steps(1));
        change(&mut spec);
        spec
    };
    let cases = [
        (spec(0, |_| ()), "num_workers is 0"),
        (spec(1, |spec| spec.max_failures = -2), "max_failures is -2"),
        (
            spec(1, |spec| spec.hang_timeout = Duration::MAX),
            "hang_timeout is",
        ),
    ];
    for (spec, text) in cases {
        let error = Controller::run(&spec, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(error.exit_code(), 2);
        assert!(!bench.run_dir().exists(), "nothing is written");
    }
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let bench = Bench::new();
    let mut spec = bench.spec(2, &Script::steps(1));
    spec.program = "/nowhere/train".into();
    spec.max_failures = -1;
    let seen = bench.run(&spec);
    let error = seen.result.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("cannot start worker 0 (/nowhere/train)"),
        "{error}"
    );
}

#[test]
fn a_run_folder_that_cannot_be_made_is_an_error() {
    let bench = Bench::new();
    let mut spec = bench.spec(1, &Script::steps(1));
    fs::write(bench.run_dir(), b"a file").unwrap();
    spec.run_dir = bench.run_dir().join("inside");
    let error = Controller::run(&spec, &mut |_| ()).unwrap_err();
    assert!(
        error.to_string().contains("make the folder of the logs"),
        "{error}"
    );
}
