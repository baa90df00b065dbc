//! The client against a controller made of a bare socket.

use super::{ConnectError, ControlClient};
use crate::protocol::{Command, Metrics, Parsed, WorkerEvent, encode, parse_event};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

struct Controller {
    folder: tempfile::TempDir,
    listener: UnixListener,
}

impl Controller {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control.sock")).unwrap();
        Self { folder, listener }
    }

    fn path(&self) -> String {
        let path = self.folder.path().join("control.sock");
        path.to_str().unwrap().to_owned()
    }

    fn accept(&self) -> (ControlClient, BufReader<UnixStream>) {
        let client = ControlClient::from_env(&|_| Some(self.path()), 3).unwrap();
        let mut reader = BufReader::new(self.listener.accept().unwrap().0);
        assert!(matches!(
            next(&mut reader),
            WorkerEvent::Hello {
                rank: 3,
                version: 1,
                ..
            }
        ));
        (client, reader)
    }
}

fn next(reader: &mut BufReader<UnixStream>) -> WorkerEvent {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    match parse_event(line.as_bytes()).unwrap() {
        Parsed::Known { message, .. } => message,
        Parsed::Unknown { name } => panic!("unknown event {name}"),
    }
}

fn progress(step: u64) -> WorkerEvent {
    let metrics = [("loss", 1.0)].into_iter().collect();
    WorkerEvent::Progress {
        step,
        epoch: 0,
        metrics,
    }
}

fn done() -> WorkerEvent {
    WorkerEvent::Done {
        metrics: Metrics::new(),
    }
}

/// Waits for something that happens soon; the limit is only there to end a test that fails.
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "still waiting: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn events_arrive_in_order_and_close_delivers_the_last() {
    let controller = Controller::new();
    let (client, mut reader) = controller.accept();
    for step in 0..100 {
        client.send(&progress(step));
    }
    client.send(&done());
    client.close();
    client.send(&progress(1000));
    drop(client);
    for step in 0..100 {
        assert_eq!(next(&mut reader), progress(step));
    }
    assert_eq!(next(&mut reader), done());
    let mut rest = String::new();
    assert_eq!(
        reader.read_line(&mut rest).unwrap(),
        0,
        "the client hung up"
    );
}

#[test]
fn commands_set_flags_and_junk_is_skipped() {
    let controller = Controller::new();
    let (client, mut reader) = controller.accept();
    assert!(!client.stop_requested() && !client.take_save_now());
    reader
        .get_mut()
        .write_all(b"junk\n{\"command\":\"sing\"}\n")
        .unwrap();
    reader
        .get_mut()
        .write_all(&encode(&Command::SaveNow))
        .unwrap();
    wait_until("save now", || client.take_save_now());
    assert!(!client.take_save_now(), "one request is taken once");
    reader.get_mut().write_all(&encode(&Command::Stop)).unwrap();
    wait_until("stop", || client.stop_requested());
    assert!(client.stop_flag().is_set() && client.is_connected());
}

#[test]
fn a_controller_that_is_gone_does_not_matter() {
    let controller = Controller::new();
    let (client, reader) = controller.accept();
    drop(reader);
    wait_until("the end is noticed", || !client.is_connected());
    for step in 0..10_000 {
        client.send(&progress(step));
    }
    client.send(&done());
}

#[test]
fn a_controller_that_does_not_read_loses_progress_but_not_the_end() {
    let controller = Controller::new();
    let (client, mut reader) = controller.accept();
    // Far more than socket and queue hold: sending must come back all the same.
    for step in 0..200_000 {
        client.send(&progress(step));
    }
    client.send(&done());
    let closing = std::thread::spawn(move || drop(client));
    let (mut steps, mut dropped) = (0_u64, 0_u64);
    loop {
        match next(&mut reader) {
            WorkerEvent::Progress { .. } => steps += 1,
            WorkerEvent::Message { text, .. } => {
                dropped += text.split(' ').next().unwrap().parse::<u64>().unwrap();
            }
            WorkerEvent::Done { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    closing.join().unwrap();
    // The count of dropped events may follow the last event.
    let mut rest = String::new();
    if reader.read_line(&mut rest).unwrap() > 0 {
        dropped += rest
            .split_once("\"text\":\"")
            .unwrap()
            .1
            .split(' ')
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap();
    }
    assert!(
        dropped > 0,
        "nothing was dropped: the test sends too little"
    );
    assert_eq!(steps + dropped, 200_000);
}

#[test]
fn without_the_variable_there_is_no_controller() {
    let client = ControlClient::from_env(&|_| None, 0).unwrap();
    assert!(!client.is_connected());
    client.send(&done());
    assert!(!client.stop_requested() && !client.take_save_now());
}

#[test]
fn a_variable_that_leads_nowhere_is_an_error() {
    let error = ControlClient::from_env(&|_| Some("/nowhere/control.sock".into()), 0).unwrap_err();
    assert!(matches!(error, ConnectError::Connect { .. }));
    assert!(
        error
            .to_string()
            .contains("/nowhere/control.sock (from TANDEM_CONTROL)"),
        "{error}"
    );
}
