//! Signals at a controller in a process of its own.

use crate::bench::{Bench, ControllerProcess, wait_until};
use crate::script::FaultKind;
use rustix::process::Signal;
use std::fs;
use std::process::Command;

#[test]
fn a_graceful_stop_saves_and_says_so() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let bench = Bench::new();
        let mut controller = bench.start_controller(|_| {});
        controller.wait_for_steps(3);
        controller.signal(signal);
        let (output, errors, status) = controller.finish();
        assert_eq!(status.code(), Some(75), "{output}{errors}");
        assert!(output.contains("graceful: true"), "{output}");
        assert!(output.contains("Ok(StoppedAfterSaving"), "{output}");
        assert!(bench.run_dir().join("checkpoint").exists());
        bench.assert_nobody_is_left();
        let record = bench.record();
        assert_eq!(record["state"], "ABORTED");
        assert_eq!(record["reason"], "stopped after saving");
    }
}

/// A controller whose workers do not hear that they were asked to stop.
fn asked_once(bench: &Bench) -> ControllerProcess {
    let mut controller = bench.start_controller(|script| {
        script.worker.stubborn = true;
        script.worker.deaf = true;
    });
    controller.wait_for_steps(3);
    controller.signal(Signal::INT);
    controller.read_until("StopRequested");
    controller
}

#[test]
fn a_second_signal_does_not_wait() {
    let bench = Bench::new();
    let controller = asked_once(&bench);
    controller.signal(Signal::INT);
    let (output, _, status) = controller.finish();
    assert_eq!(status.code(), Some(130), "{output}");
    bench.assert_nobody_is_left();
    assert!(!bench.run_dir().join("checkpoint").exists());
    assert_eq!(bench.record()["reason"], "SIGINT, then a second signal");
}

/// Whoever asks again and again gets what the second time was for.
#[test]
fn signals_after_the_second_change_nothing() {
    let bench = Bench::new();
    let mut controller = asked_once(&bench);
    while controller.child.try_wait().unwrap().is_none() {
        // Of several kinds: equal ones that come at once are one.
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            controller.signal(signal);
        }
    }
    let (output, errors, status) = controller.finish();
    assert_eq!(status.code(), Some(130), "{output}{errors}");
    bench.assert_nobody_is_left();
    let record = bench.record();
    assert_eq!(record["state"], "ABORTED");
    assert_eq!(record["reason"], "SIGINT, then a second signal");
}

#[test]
fn without_grace_the_workers_end_at_once() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let bench = Bench::new();
        let mut controller = bench.start_controller(|script| script.graceful_stop = false);
        controller.wait_for_steps(3);
        controller.signal(signal);
        let (output, _, status) = controller.finish();
        assert_eq!(status.code(), Some(code), "{output}");
        assert!(output.contains("graceful: false"), "{output}");
        bench.assert_nobody_is_left();
        assert!(!bench.run_dir().join("checkpoint").exists());
    }
}

/// The test above, by a suite that is itself started under nohup.
#[test]
fn a_hang_up_can_be_tested_under_nohup() {
    let output = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "signals::without_grace_the_workers_end_at_once"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn before_training_one_signal_ends_the_run_at_once() {
    let bench = Bench::new();
    let mut controller = bench.start_controller(|script| script.worker.never_trains = true);
    for _ in 0..3 {
        controller.read_until("Phase { name: \"loading\"");
    }
    controller.signal(Signal::INT);
    // The patience with a graceful stop is a minute, and nobody asks a second time.
    let (output, errors, status) = controller.finish();
    assert_eq!(status.code(), Some(130), "{output}{errors}");
    assert!(output.contains("graceful: false"), "{output}");
    bench.assert_nobody_is_left();
    let record = bench.record();
    assert_eq!(record["state"], "ABORTED");
    assert_eq!(record["reason"], "SIGINT, before training began");
}

#[test]
fn patience_with_a_graceful_stop_ends() {
    let bench = Bench::new();
    let mut controller = bench.start_controller(|script| {
        script.worker.stubborn = true;
        script.stop_grace_ms = 200;
    });
    controller.wait_for_steps(3);
    controller.signal(Signal::TERM);
    let (output, _, status) = controller.finish();
    assert_eq!(status.code(), Some(143), "{output}");
    bench.assert_nobody_is_left();
    let reason = bench.record()["reason"].to_string();
    assert!(
        reason.contains("did not save and stop within 0.2 s"),
        "{reason}"
    );
}

#[test]
fn a_failure_during_a_stop_is_not_restarted() {
    let bench = Bench::new();
    let mut controller = bench.start_controller(|script| {
        script.max_failures = -1;
        script.worker.stubborn = true;
        script.worker.step_ms = 50;
        let fault = FaultKind::Error {
            message: "the disk is full".into(),
            exit_code: 1,
        };
        script.worker = script.worker.clone().with_fault(1, 20, u32::MAX, fault);
    });
    controller.wait_for_steps(3);
    controller.signal(Signal::TERM);
    let (output, errors, status) = controller.finish();
    assert_eq!(status.code(), Some(1), "{output}{errors}");
    assert!(errors.contains("the disk is full"), "{errors}");
    assert_eq!(bench.record()["attempts"].as_array().unwrap().len(), 1);
}

#[test]
fn a_stop_between_two_attempts_is_heard() {
    let bench = Bench::new();
    let mut controller = bench.start_controller(|script| {
        script.max_failures = -1;
        script.backoff_ms = 60_000;
        script.worker =
            script
                .worker
                .clone()
                .with_fault(0, 0, u32::MAX, FaultKind::Exit { code: 1 });
    });
    controller.read_until("Restarting {");
    controller.signal(Signal::INT);
    let (output, _, status) = controller.finish();
    assert_eq!(status.code(), Some(130), "{output}");
    assert_eq!(bench.record()["state"], "ABORTED");
}

#[test]
fn sigusr1_asks_for_a_checkpoint_and_training_goes_on() {
    let bench = Bench::new();
    let mut controller = bench.start_controller(|_| {});
    controller.wait_for_steps(3);
    controller.signal(Signal::USR1);
    controller.read_until("checkpoint_dir_name: Some");
    controller.read_until("Progress");
    controller.signal(Signal::TERM);
    assert_eq!(controller.finish().2.code(), Some(75));
}

#[test]
fn a_killed_controller_takes_its_workers_along_even_stopped_ones() {
    let bench = Bench::new();
    let mut controller = bench.start_controller(|script| {
        script.worker = script.worker.clone().with_fault(1, 3, 1, FaultKind::Stop);
    });
    controller.wait_for_steps(3);
    wait_until("rank 1 is stopped", || {
        bench.run_dir().join("failed_0").exists()
    });
    assert_eq!(bench.processes().len(), 3);
    controller.signal(Signal::KILL);
    controller.finish();
    bench.wait_until_nobody_is_left();
}

#[test]
fn the_control_socket_leaves_nothing_in_the_temporary_folder() {
    let bench = Bench::new();
    let mut controller = bench.start_controller(|_| {});
    controller.wait_for_steps(3);
    let environ = fs::read(format!("/proc/{}/environ", bench.processes()[0])).unwrap();
    let environ = String::from_utf8_lossy(&environ);
    let path = environ
        .split('\0')
        .find_map(|entry| entry.strip_prefix("TANDEM_CONTROL="))
        .unwrap();
    assert!(path.ends_with("control.sock"), "{path}");
    assert!(
        !std::path::Path::new(path).parent().unwrap().exists(),
        "all are connected: it is gone"
    );
    controller.signal(Signal::TERM);
    assert_eq!(controller.finish().2.code(), Some(75));
}
