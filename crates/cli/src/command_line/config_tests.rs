//! Flags from a file.

use std::ffi::OsString;
use std::fs;

use clap::{CommandFactory, Parser};
use tandem_run::environment::Environment;

use super::complete;
use crate::flags::train::FsdpFlags;

fn expanded(name: &str, text: &str, args: &[&str]) -> Result<FsdpFlags, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    let mut line: Vec<OsString> = args.iter().map(OsString::from).collect();
    line.extend(["--config".into(), path.into_os_string()]);
    let line = complete(&FsdpFlags::command(), &line, &Environment::read());
    let line = line.map_err(|failure| {
        assert_eq!(failure.exit_code, 2);
        failure.message
    })?;
    let line = std::iter::once(OsString::from("train_fsdp")).chain(line.args);
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
