//! Whether a run may continue from a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use crate::train_state::TrainState;

/// A value that the checkpoint and the run do not share.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Its name, as the flag is called where it is one.
    pub what: String,
    /// In the checkpoint; null where it has none.
    pub saved: Value,
    /// In this run; null where it has none.
    pub current: Value,
}

/// How this run differs from the one that wrote a checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Differences {
    /// Another model, data, sample length or seed: the run would not be a continuation.
    pub refused: Vec<Difference>,
    /// Another strategy, mesh, learning rate, ...: allowed, and worth showing.
    pub allowed: Vec<Difference>,
}

/// Compares what is saved with what this run has: of `current`, its identity, mesh and settings count, not its progress.
pub fn differences(saved: &TrainState, current: &TrainState) -> Differences {
    let identity = |state: &TrainState| {
        BTreeMap::from([
            ("model", Value::from(state.model_fingerprint.clone())),
            ("data", Value::from(state.data_fingerprint.clone())),
            ("seq_length", Value::from(state.seq_length)),
            ("seed", Value::from(state.seed)),
        ])
    };
    let mesh = |state: &TrainState| {
        BTreeMap::from([
            ("strategy", Value::from(state.strategy.clone())),
            ("tp_size", Value::from(state.tp_size)),
            ("dp_size", Value::from(state.dp_size)),
            ("zero_stage", Value::from(state.zero_stage)),
        ])
    };
    let mut allowed = compare(&mesh(saved), &mesh(current));
    allowed.extend(compare(&saved.settings, &current.settings));
    Differences {
        refused: compare(&identity(saved), &identity(current)),
        allowed,
    }
}

fn compare<K: AsRef<str> + Ord>(
    saved: &BTreeMap<K, Value>,
    current: &BTreeMap<K, Value>,
) -> Vec<Difference> {
    let names: BTreeSet<&K> = saved.keys().chain(current.keys()).collect();
    let value = |map: &BTreeMap<K, Value>, name| map.get(name).cloned().unwrap_or_default();
    names
        .into_iter()
        .map(|name| Difference {
            what: name.as_ref().to_owned(),
            saved: value(saved, name),
            current: value(current, name),
        })
        .filter(|difference| difference.saved != difference.current)
        .collect()
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            saved,
            current,
        } = self;
        write!(
            f,
            "{what}: {saved} in the checkpoint, {current} in this run"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_refuses_and_the_rest_is_shown() {
        let saved = TrainState {
            strategy: "fsdp".into(),
            tp_size: 2,
            dp_size: 1,
            model_fingerprint: "m".into(),
            seed: 1,
            seq_length: 512,
            global_step: 10,
            settings: BTreeMap::from([
                ("lr".into(), Value::from(1e-3)),
                ("old".into(), Value::from(1)),
            ]),
            ..TrainState::default()
        };
        assert_eq!(differences(&saved, &saved), Differences::default());
        let current = TrainState {
            strategy: "deepspeed".into(),
            zero_stage: Some(1),
            seed: 2,
            global_step: 0,
            settings: BTreeMap::from([
                ("lr".into(), Value::from(2e-3)),
                ("old".into(), Value::from(1)),
            ]),
            ..saved.clone()
        };
        let found = differences(&saved, &current);
        let names = |list: &[Difference]| list.iter().map(|d| d.what.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found.refused), ["seed"]);
        assert_eq!(names(&found.allowed), ["strategy", "zero_stage", "lr"]);
        assert_eq!(
            found.refused[0].to_string(),
            "seed: 1 in the checkpoint, 2 in this run"
        );
    }
}
