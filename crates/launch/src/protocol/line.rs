//! Lines to messages and back, lenient towards newer peers: unknown messages and fields are told apart from broken ones.

use super::{Command, WorkerEvent};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The longest line that is accepted. A peer that sends more without a line break does not speak this protocol.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// A line that could be read.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed<M> {
    /// A message of this version.
    Known {
        /// The message.
        message: M,
        /// Fields that this version does not have, to warn about.
        unknown_fields: Vec<String>,
    },
    /// A message of a newer version, to warn about and ignore.
    Unknown {
        /// The message's name.
        name: String,
    },
}

/// Why a line is no message.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line is not JSON.
    #[error("not JSON: {0}")]
    NotJson(#[source] serde_json::Error),
    /// The line is JSON, but names no message.
    #[error("not an object with a string {tag:?}")]
    NoName {
        /// The field that should hold the message's name.
        tag: &'static str,
    },
    /// The message is known, but a field is missing or of the wrong type.
    #[error("bad {name:?} message: {source}")]
    BadFields {
        /// The message's name.
        name: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// One line, with its line break, of a [`WorkerEvent`] or a [`Command`].
#[must_use]
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    // Serialising fails for map keys that are not strings only, and no message has such a map.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads a worker's line.
///
/// # Errors
/// [`LineError`] when the line is not a message; the connection stays usable.
pub fn parse_event(line: &[u8]) -> Result<Parsed<WorkerEvent>, LineError> {
    const NAMES: [&str; 7] = [
        "hello", "phase", "progress", "message", "report", "error", "done",
    ];
    parse(line, "event", &NAMES)
}

/// Reads a controller's line.
///
/// # Errors
/// [`LineError`] when the line is not a message; the connection stays usable.
pub fn parse_command(line: &[u8]) -> Result<Parsed<Command>, LineError> {
    parse(line, "command", &["stop", "save_now"])
}

fn parse<M: Serialize + DeserializeOwned>(
    line: &[u8],
    tag: &'static str,
    names: &[&str],
) -> Result<Parsed<M>, LineError> {
    let value: Value = serde_json::from_slice(line).map_err(LineError::NotJson)?;
    let name = value
        .get(tag)
        .and_then(Value::as_str)
        .ok_or(LineError::NoName { tag })?
        .to_owned();
    if !names.contains(&name.as_str()) {
        return Ok(Parsed::Unknown { name });
    }
    let keys: Vec<String> = value
        .as_object()
        .map(|object| object.keys().cloned().collect())
        .unwrap_or_default();
    let bad_fields = |source| LineError::BadFields {
        name: name.clone(),
        source,
    };
    let message: M = serde_json::from_value(value).map_err(bad_fields)?;
    // What comes back out of the message is what this version knows: the rest was ignored.
    let known = serde_json::to_value(&message).map_err(bad_fields)?;
    let unknown_fields = keys
        .into_iter()
        .filter(|key| known.get(key).is_none())
        .collect();
    Ok(Parsed::Known {
        message,
        unknown_fields,
    })
}

#[cfg(test)]
mod tests {
    use super::{LineError, Parsed, encode, parse_command, parse_event};
    use crate::protocol::{Command, Level, Metrics, WorkerEvent};

    fn every_event() -> Vec<WorkerEvent> {
        let metrics: Metrics = [("loss", 2.5), ("steps", 3.0)].into_iter().collect();
        vec![
            WorkerEvent::Hello {
                rank: 1,
                pid: 42,
                version: 1,
            },
            WorkerEvent::Phase {
                name: "loading".into(),
            },
            WorkerEvent::Progress {
                step: 7,
                epoch: 0,
                metrics: metrics.clone(),
            },
            WorkerEvent::Message {
                level: Level::Warning,
                text: "two\nlines".into(),
            },
            WorkerEvent::Report {
                metrics: metrics.clone(),
                checkpoint_dir_name: Some("checkpoint_1".into()),
            },
            WorkerEvent::Report {
                metrics: metrics.clone(),
                checkpoint_dir_name: None,
            },
            WorkerEvent::Error {
                rank: 1,
                step: None,
                message: "no".into(),
                secondary: true,
                exit_code: 1,
            },
            WorkerEvent::Done { metrics },
        ]
    }

    #[test]
    fn every_event_survives_the_wire() {
        for event in every_event() {
            let line = encode(&event);
            assert_eq!(
                line.iter().filter(|byte| **byte == b'\n').count(),
                1,
                "{event:?}"
            );
            let expected = Parsed::Known {
                message: event,
                unknown_fields: vec![],
            };
            assert_eq!(parse_event(&line).unwrap(), expected);
        }
        for command in [Command::Stop, Command::SaveNow] {
            let expected = Parsed::Known {
                message: command,
                unknown_fields: vec![],
            };
            assert_eq!(parse_command(&encode(&command)).unwrap(), expected);
        }
    }

    #[test]
    fn the_examples_of_the_document_are_what_the_code_speaks() {
        let document = include_str!("../../PROTOCOL.md");
        let (mut events, mut commands) = (0, 0);
        for line in document.lines().filter(|line| line.starts_with('{')) {
            if line.contains("\"event\"") {
                match parse_event(line.as_bytes()).unwrap() {
                    Parsed::Known { unknown_fields, .. } => {
                        assert!(unknown_fields.is_empty(), "{line}")
                    }
                    Parsed::Unknown { name } => {
                        panic!("the document shows an unknown event {name}")
                    }
                }
                events += 1;
            } else {
                assert!(
                    matches!(parse_command(line.as_bytes()), Ok(Parsed::Known { .. })),
                    "{line}"
                );
                commands += 1;
            }
        }
        assert!(
            events >= 7 && commands == 2,
            "{events} events, {commands} commands"
        );
    }

    #[test]
    fn values_that_are_not_finite_survive_the_wire() {
        let metrics = [
            ("a", f64::NAN),
            ("b", f64::INFINITY),
            ("c", f64::NEG_INFINITY),
        ];
        let line = encode(&WorkerEvent::Done {
            metrics: metrics.into_iter().collect(),
        });
        let Parsed::Known {
            message: WorkerEvent::Done { metrics },
            ..
        } = parse_event(&line).unwrap()
        else {
            panic!("not a done event");
        };
        assert!(metrics.get("a").unwrap().is_nan());
        assert_eq!(metrics.get("b"), Some(f64::INFINITY));
        assert_eq!(metrics.get("c"), Some(f64::NEG_INFINITY));
    }

    #[test]
    fn newer_messages_and_fields_are_told_apart_from_broken_ones() {
        assert_eq!(
            parse_event(br#"{"event":"dance","tempo":3}"#).unwrap(),
            Parsed::Unknown {
                name: "dance".into()
            }
        );
        assert_eq!(
            parse_event(br#"{"event":"phase","name":"saving","percent":3,"colour":"red"}"#)
                .unwrap(),
            Parsed::Known {
                message: WorkerEvent::Phase {
                    name: "saving".into()
                },
                unknown_fields: vec!["colour".into(), "percent".into()],
            }
        );
        assert!(matches!(parse_event(b"hello"), Err(LineError::NotJson(_))));
        assert!(matches!(
            parse_event(b"[]"),
            Err(LineError::NoName { tag: "event" })
        ));
        assert!(matches!(
            parse_event(br#"{"event":1}"#),
            Err(LineError::NoName { .. })
        ));
        let error =
            parse_event(br#"{"event":"progress","step":-1,"epoch":0,"metrics":{}}"#).unwrap_err();
        assert!(error.to_string().contains("progress"), "{error}");
        let error = parse_event(br#"{"event":"done","metrics":{"loss":null}}"#).unwrap_err();
        assert!(error.to_string().contains("NaN, inf, -inf"), "{error}");
    }
}
