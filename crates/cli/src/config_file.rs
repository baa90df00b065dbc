//! `--config FILE`: flags from a file. Its keys are the flags' names; flags on the command line win.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::Command;
use serde_json::{Map, Value};
use tandem_files::read_small_text;
use tandem_run::failure::{Failure, Outcome};

/// The flag.
const CONFIG: &str = "config";

/// The most that a file of flags may have.
const MAX_BYTES: u64 = 1 << 20;

/// Flags that belong together: one of them on the command line, and the file does not decide the other.
const TOGETHER: [[&str; 2]; 3] = [
    ["num_epochs", "max_steps"],
    ["warmup_steps", "warmup_ratio"],
    ["experiment_name", "resume_from"],
];

/// `args` (without the program's name) with what the file that they name has besides.
///
/// # Errors
/// Wrong usage: a file that cannot be read, or that has a key which is no flag.
pub fn expand(command: &Command, args: &[OsString]) -> Outcome<Vec<OsString>> {
    let Some(path) = value_of(args, CONFIG) else {
        return Ok(args.to_vec());
    };
    let path = Path::new(&path);
    let wrong = |what: String| Failure::usage(format!("--config {}: {what}", path.display()));
    let mut keys = read(path).map_err(wrong)?;
    if keys.contains_key("entry_point") && keys.contains_key("flags") {
        keys = of_run_config(keys, command.get_name()).map_err(wrong)?;
    }
    if let Some(product) = workers(args, &keys) {
        keys.insert("num_workers".into(), product.into());
    }
    let mut line = args.to_vec();
    for (key, value) in &keys {
        if key == CONFIG || !is_flag(command, key) {
            return Err(wrong(format!(
                "`{key}` is no flag{}",
                nearest(command, key)
            )));
        }
        if is_given(args, key) || is_decided(args, key) {
            continue;
        }
        let words = words(value)
            .ok_or_else(|| wrong(format!("`{key}` is {value}, which no flag takes")))?;
        // One word, so that a value may begin with a dash.
        line.extend(words.iter().map(|word| format!("--{key}={word}").into()));
    }
    Ok(line)
}

/// A file's object. The ending says how it is written.
fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let text = read_small_text(path, MAX_BYTES).map_err(|error| error.to_string())?;
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    let value: Value = match ending.to_ascii_lowercase().as_str() {
        "yaml" | "yml" => serde_saphyr::from_str(&text).map_err(|error| error.to_string())?,
        "toml" => toml::from_str(&text).map_err(|error| error.to_string())?,
        "json" => serde_json::from_str(&text).map_err(|error| error.to_string())?,
        _ => return Err("it must end with .yaml, .toml or .json".into()),
    };
    match value {
        Value::Object(keys) => Ok(keys),
        Value::Null => Ok(Map::new()),
        _ => Err("it must have the names of flags with their values".into()),
    }
}

/// The flags of a run, from its `run_config.json`, for a run of one's own: neither its name nor where it ran.
fn of_run_config(
    mut file: Map<String, Value>,
    program: &str,
) -> Result<Map<String, Value>, String> {
    let entry_point = file["entry_point"].as_str().unwrap_or_default();
    if entry_point != program {
        return Err(format!(
            "it is of a run of {entry_point}, and this is {program}"
        ));
    }
    let mut section = |name: &str| match file.remove(name) {
        Some(Value::Object(section)) => section,
        _ => Map::new(),
    };
    let mut keys = section("flags");
    let of_one = ["name", "resume_from", "resume_fallback"];
    keys.extend(section("run"));
    keys.extend(
        section("ray")
            .into_iter()
            .filter(|(key, _)| key == "hang_timeout_s"),
    );
    keys.extend(file.remove_entry("num_workers"));
    keys.retain(|key, value| !value.is_null() && !of_one.contains(&key.as_str()));
    Ok(keys)
}

/// The number of workers where the command line changes the mesh and not it.
fn workers(args: &[OsString], keys: &Map<String, Value>) -> Option<u64> {
    let is_changed = is_given(args, "tp_size") || is_given(args, "dp_size");
    if !is_changed || is_given(args, "num_workers") {
        return None;
    }
    let size = |flag: &str| match value_of(args, flag) {
        Some(text) => text.to_str()?.parse().ok(),
        None => keys.get(flag).map_or(Some(1), Value::as_u64),
    };
    let tp_size: u64 = size("tp_size")?;
    tp_size.checked_mul(size("dp_size")?)
}

/// The words of a value, each for a flag of its own.
fn words(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Bool(_) | Value::Number(_) => Some(vec![value.to_string()]),
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(values) => {
            let all = values.iter().map(|value| match value {
                Value::Array(_) | Value::Null => None,
                one => words(one),
            });
            all.collect::<Option<Vec<_>>>().map(|all| all.concat())
        }
        Value::Object(_) => None,
    }
}

fn is_flag(command: &Command, key: &str) -> bool {
    command
        .get_arguments()
        .any(|arg| arg.get_long() == Some(key))
}

/// The flag whose name is most like `key`.
fn nearest(command: &Command, key: &str) -> String {
    let flags = command.get_arguments().filter_map(clap::Arg::get_long);
    let alike = flags.map(|flag| (strsim::jaro_winkler(flag, key), flag));
    match alike.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((alike, flag)) if alike > 0.8 => format!("; did you mean `{flag}`?"),
        _ => " (--help lists them)".into(),
    }
}

/// The last value that the command line gives a flag.
fn value_of(args: &[OsString], flag: &str) -> Option<OsString> {
    let long = format!("--{flag}");
    let mut found = None;
    for (index, arg) in args.iter().enumerate() {
        let text = arg.to_string_lossy();
        if text == long {
            found = args.get(index + 1).cloned();
        } else if let Some(value) = text.strip_prefix(&format!("{long}=")) {
            found = Some(value.into());
        }
    }
    found
}

fn is_given(args: &[OsString], flag: &str) -> bool {
    let long = format!("--{flag}");
    args.iter().any(|arg| {
        let text = arg.to_string_lossy();
        text == long || text.starts_with(&format!("{long}="))
    })
}

fn is_decided(args: &[OsString], flag: &str) -> bool {
    TOGETHER.iter().any(|[one, other]| {
        (flag == *one && is_given(args, other)) || (flag == *other && is_given(args, one))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::train::FsdpFlags;
    use clap::{CommandFactory, Parser};
    use std::fs;

    fn expanded(name: &str, text: &str, args: &[&str]) -> Result<FsdpFlags, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        let mut line: Vec<OsString> = args.iter().map(OsString::from).collect();
        line.extend(["--config".into(), path.into_os_string()]);
        let line = expand(&FsdpFlags::command(), &line).map_err(|failure| {
            assert_eq!(failure.exit_code, 2);
            failure.message
        })?;
        let line = std::iter::once(OsString::from("train_fsdp")).chain(line);
        FsdpFlags::try_parse_from(line).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_has_flags_in_three_ways_of_writing() {
        let files = [
            (
                "a.yaml",
                "tp_size: 2\nnum_workers: 2\nlearning_rate: 1e-4\nsequence_parallel: true\nmodel_name: -x\n",
            ),
            (
                "a.toml",
                "tp_size = 2\nnum_workers = 2\nlearning_rate = 1e-4\nsequence_parallel = true\nmodel_name = '-x'\n",
            ),
            (
                "a.json",
                r#"{"tp_size": 2, "num_workers": 2, "learning_rate": 1e-4, "sequence_parallel": true, "model_name": "-x", "dataset_config": null}"#,
            ),
        ];
        for (name, text) in files {
            let flags = expanded(name, text, &[]).unwrap();
            assert_eq!((flags.common.tp_size, flags.common.num_workers), (2, 2));
            assert_eq!(flags.common.learning_rate, 1e-4);
            assert!(flags.common.sequence_parallel);
            assert_eq!(flags.common.model_name, "-x");
        }
    }

    #[test]
    fn the_command_line_wins() {
        let text = "tp_size: 2\ndp_size: 2\nnum_workers: 4\nnum_epochs: 7\nseed: 3\n";
        let flags = expanded("a.yml", text, &["--dp_size=1", "--max_steps", "5"]).unwrap();
        assert_eq!((flags.common.tp_size, flags.common.dp_size), (2, 1));
        assert_eq!(flags.common.num_workers, 2, "it follows the mesh");
        assert_eq!((flags.common.max_steps, flags.common.num_epochs), (5, 0));
        assert_eq!(flags.common.seed, 3);
    }

    #[test]
    fn the_configuration_of_a_run_is_such_a_file() {
        let run = |entry_point: &str| {
            format!(
                r#"{{"entry_point": "{entry_point}", "cluster": "ray", "num_workers": 2, "flags": {{"tp_size": 2, "autocast": true}},
                "run": {{"storage_path": "runs", "name": "old", "resume_from": null, "max_failures": 3}},
                "ray": {{"address": "auto", "hang_timeout_s": 9}}, "version": "0.1.0", "binary": null}}"#
            )
        };
        let flags = expanded("run_config.json", &run("train_fsdp"), &[]).unwrap();
        assert!(flags.autocast);
        assert_eq!(flags.common.num_workers, 2);
        let spec = flags.into_spec().unwrap();
        assert_eq!(spec.checkpoints.kept.max_failures, 3);
        assert_eq!(spec.checkpoints.watch.hang_timeout_s, 9);
        assert_eq!(spec.output.experiment.storage_path, "runs");
        assert_eq!(spec.output.experiment.name.given(), None);
        let other = expanded("run_config.json", &run("train_deepspeed"), &[]).unwrap_err();
        assert!(other.contains("of a run of train_deepspeed"), "{other}");
    }

    #[test]
    fn what_is_no_flag_is_refused_with_the_nearest() {
        let cases = [
            (
                "a.yaml",
                "learning_rat: 1\n",
                "did you mean `learning_rate`?",
            ),
            ("a.yaml", "zzz: 1\n", "`zzz` is no flag"),
            ("a.yaml", "tp_size: [1\n", "--config"),
            ("a.yaml", "- 1\n", "names of flags"),
            ("a.yaml", "tp_size: {a: 1}\n", "which no flag takes"),
            ("a.toml", "tp_size = \n", "--config"),
            ("a.ini", "tp_size = 1\n", ".yaml, .toml or .json"),
            ("a.json", r#"{"config": "b.json"}"#, "`config` is no flag"),
        ];
        for (name, text, words) in cases {
            let message = expanded(name, text, &[]).unwrap_err();
            assert!(message.contains(words), "{text}: {message}");
        }
    }
}
