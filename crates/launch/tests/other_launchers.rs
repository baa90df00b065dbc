//! Workers that the local controller did not start.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn the_first_signal_asks_to_stop_and_the_second_one_ends() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut worker = Command::new(env!("CARGO_BIN_EXE_tandem-fake-worker"))
            .arg("alone")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
        for expected in ["ready", "asked to stop"] {
            assert_eq!(lines.next().unwrap().unwrap(), expected);
            kill_process(Pid::from_child(&worker), signal).unwrap();
        }
        assert_eq!(worker.wait().unwrap().code(), Some(code));
    }
}

#[test]
fn a_worker_whose_controller_is_gone_already_does_not_start() {
    // The parent is this test, not process 1, just as if the real one had died and init had taken over.
    let output = Command::new(env!("CARGO_BIN_EXE_tandem-fake-worker"))
        .arg("alone")
        .env("TANDEM_CONTROLLER_PID", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("Gone { expected: 1"), "{errors}");
}
