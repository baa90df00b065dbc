//! What the controller and its workers tell each other, and what it leaves in the run's folder.

use std::fs;

use tandem_launch::controller::RunStatus;
use tandem_launch::protocol::{Parsed, encode, parse_command, parse_event};
use tandem_run::start::start_beside;

pub mod seeds {
    fn lines(text: &[&str]) -> Vec<Vec<u8>> {
        text.iter().map(|line| line.as_bytes().to_vec()).collect()
    }

    pub fn events() -> Vec<Vec<u8>> {
        lines(&[
            r#"{"event":"hello","version":1,"rank":0,"world_size":2,"pid":7}"#,
            r#"{"event":"phase","phase":"loading"}"#,
            r#"{"event":"progress","step":3,"epoch":0,"metrics":{"loss":1.5,"lr":0.001}}"#,
            r#"{"event":"message","level":"warning","text":"x"}"#,
            r#"{"event":"report","metrics":{"step":3},"checkpoint_dir_name":"checkpoint_1"}"#,
            r#"{"event":"error","message":"x","step":null,"secondary":false}"#,
            r#"{"event":"done","metrics":{}}"#,
            r#"{"event":"of a newer version","x":[1]}"#,
        ])
    }

    pub fn commands() -> Vec<Vec<u8>> {
        lines(&[r#"{"command":"stop"}"#, r#"{"command":"save_now","x":1}"#])
    }

    pub fn lease() -> Vec<Vec<u8>> {
        let owner = r#"{"pid":1,"host":"h","since":"2026-01-01T00:00:00Z","start_ticks":77}"#;
        [
            format!(r#"{{"owner":{owner},"renewed_at":1767225600,"released":false}}"#),
            format!(r#"{{"owner":{owner},"renewed_at":18446744073709551615,"released":false}}"#),
            format!(r#"{{"owner":{owner},"renewed_at":0,"released":true}}"#),
        ]
        .map(String::into_bytes)
        .to_vec()
    }

    pub fn run_json() -> Vec<Vec<u8>> {
        lines(&[
            r#"{"version":1,"state":"RUNNING","reason":"x","last_step":12,"attempts":[{"attempt":1}]}"#,
            r#"{"pid":1,"host":"h","since":"2026-01-01T00:00:00Z","start_ticks":77}"#,
            "",
        ])
    }
}

pub fn events(line: &[u8]) {
    if let Ok(Parsed::Known { message, .. }) = parse_event(line) {
        let again = parse_event(&encode(&message)).expect("what is written is read");
        assert!(matches!(again, Parsed::Known { .. }));
    }
}

pub fn commands(line: &[u8]) {
    if let Ok(Parsed::Known { message, .. }) = parse_command(line) {
        parse_command(&encode(&message)).expect("what is written is read");
    }
}

/// What another controller may have left in object storage. Its words come into an error, so they must not be long.
pub fn lease(bytes: &[u8]) {
    if let Some(said) = start_beside(bytes) {
        assert!(said.contains("another controller runs"), "{said}");
    }
}

/// `run.json`, and the lock with its owner's name.
pub fn run_json(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let state = br#"{"state":"RUNNING"}"#;
    for (run, lock) in [(bytes, &b""[..]), (bytes, bytes), (&state[..], bytes)] {
        fs::write(folder.path().join("run.json"), run).unwrap();
        fs::write(folder.path().join(".lock"), lock).unwrap();
        if let Some(status) = RunStatus::of(folder.path()) {
            assert!(!status.to_string().is_empty());
        }
    }
}
