//! Output that nobody takes, and a terminal that is closed: nothing is lost by it.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::demo::{Run, kill, output_within, train, workers_of};
use crate::{hang_up, saved};

const TANDEM: &str = env!("CARGO_BIN_EXE_tandem");

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn state(run: &Run) -> Value {
    let text = std::fs::read_to_string(run.dir().join("run.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["state"].clone()
}

fn steps(run: &Run) -> u64 {
    let text = std::fs::read_to_string(run.dir().join("metrics.jsonl")).unwrap();
    text.lines().count() as u64
}

#[test]
fn a_full_disk_below_the_log_does_not_end_a_run() {
    let run = Run::new("fsdp", 1, 1).args(["--max_steps", "3", "--log_interval", "1"]);
    let status = train(&run).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!((steps(&run), saved::steps(&run.dir())), (3, vec![3]));
    let log = std::fs::read_to_string(run.dir().join("logs/run.log")).unwrap();
    let said = log.lines().filter(|line| line.contains("No space left"));
    assert_eq!(said.count(), 1, "it is said once: {log}");
    assert!(log.contains("Z step 3/3  epoch 1"), "{log}");
}

#[test]
fn a_reader_that_ends_does_not_end_a_run() {
    let run = Run::new("fsdp", 1, 1).args(["--num_epochs", "10000", "--log_interval", "1"]);
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    run.wait_for_steps(2);
    drop(child.stderr.take());
    run.wait_for_steps(6);
    kill(child.id(), "TERM");
    let (code, _) = output_within(&mut child, Duration::from_secs(60));
    assert_eq!(code, Some(75));
    assert_eq!(saved::steps(&run.dir()).last(), Some(&steps(&run)));
}

/// A terminal that is closed hangs up on the controller; whoever ends a session may hang up on its workers as well.
#[test]
fn a_hang_up_saves_and_leaves() {
    for workers_too in [false, true] {
        let run = Run::new("fsdp", 1, 2).args(["--num_epochs", "10000"]);
        let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
        run.wait_for_steps(2);
        drop(child.stderr.take());
        let workers = workers_of(child.id());
        assert_eq!(workers.len(), 2);
        if workers_too {
            workers.iter().for_each(|(_, pid)| kill(*pid, "HUP"));
        }
        kill(child.id(), "HUP");
        let (code, _) = output_within(&mut child, Duration::from_secs(60));
        assert_eq!(code, Some(75), "workers too: {workers_too}");
        assert_eq!(saved::steps(&run.dir()).last(), Some(&steps(&run)));
        assert_eq!(state(&run), "ABORTED");
    }
}

#[test]
fn under_nohup_a_hang_up_means_nothing() {
    let run = Run::new("fsdp", 1, 1).args(["--max_steps", "30"]);
    let mut command = hang_up::ignored(&train(&run));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    run.wait_for_steps(2);
    kill(child.id(), "HUP");
    let (code, text) = output_within(&mut child, Duration::from_secs(60));
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(steps(&run), 30);
}

#[test]
fn commands_do_not_panic_when_their_output_cannot_be_written() {
    let run = Run::new("fsdp", 1, 1).args(["--max_steps", "1"]);
    let folder = run.succeed();
    let folder = folder.to_str().unwrap();
    let exported = run.storage.path().join("exported");
    let exported = exported.to_str().unwrap();
    let export = ["export", "--checkpoint", folder, "--output", exported];
    let commands: [&[&str]; 6] = [
        &["inspect", folder, "--tensors"],
        &["doctor"],
        &["doctor", "--json"],
        &["schema"],
        &["--help"],
        &export,
    ];
    for args in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(TANDEM);
        command.args(args).stdin(Stdio::null());
        let closed = command.stdout(writer).output().unwrap();
        let _ = std::fs::remove_dir_all(exported);
        let full = command.stdout(full()).output().unwrap();
        for output in [&closed, &full] {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!text.contains("panicked"), "{args:?}: {text}");
            assert_ne!(output.status.code(), Some(101), "{args:?}");
        }
        if args[0] == "inspect" {
            assert_eq!(closed.status.code(), Some(0), "the reader has seen enough");
            assert_eq!(full.status.code(), Some(1));
            let text = String::from_utf8_lossy(&full.stderr);
            assert!(text.contains("standard output: No space"), "{text}");
        }
    }
    // And nobody takes the error either.
    let status = Command::new(TANDEM)
        .args(["inspect", "/no/such/run"])
        .stdout(full())
        .stderr(full())
        .status();
    assert_eq!(status.unwrap().code(), Some(1));
}

#[test]
fn a_run_whose_controller_was_killed_is_not_shown_as_running() {
    let run = Run::new("fsdp", 1, 1).args(["--num_epochs", "10000", "--save_steps", "1"]);
    let mut child = train(&run).stderr(Stdio::null()).spawn().unwrap();
    run.wait_for_steps(3);
    let inspected = || {
        let mut command = Command::new(TANDEM);
        command.args(["inspect", "--verify=false"]).arg(run.dir());
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(inspected().contains("run: RUNNING"), "{}", inspected());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(state(&run), "RUNNING", "nobody could write it");
    let text = inspected();
    assert!(text.contains("run: LOST: it was RUNNING"), "{text}");
}
