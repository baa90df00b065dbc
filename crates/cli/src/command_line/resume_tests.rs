//! Flags from the run that goes on.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::{CommandFactory, Parser};
use serde_json::{Value, json};
use tandem_run::environment::Environment;
use tandem_run::spec::RunSpec;

use super::{Complete, complete};
use crate::flags::train::{DeepSpeedFlags, FsdpFlags};

/// The folder of a run with the flags `args`, as its controller leaves it.
fn run(storage: &Path, args: &[&str]) {
    let line = ["train_fsdp"].iter().chain(args);
    let spec = FsdpFlags::try_parse_from(line)
        .unwrap()
        .into_spec()
        .unwrap();
    fs::create_dir_all(storage.join("night")).unwrap();
    let text = serde_json::to_string(&spec).unwrap();
    fs::write(storage.join("night/run_config.json"), text).unwrap();
}

fn completed<F: CommandFactory>(storage: &Path, args: &[&str]) -> Result<Complete, String> {
    let place = format!("--storage_path={}", storage.display());
    let words = ["--resume_from=night", &place];
    let args: Vec<OsString> = words.iter().chain(args).map(OsString::from).collect();
    complete(&F::command(), &args, &Environment::read()).map_err(|failure| {
        assert_eq!(failure.exit_code, 2);
        failure.message
    })
}

fn fsdp(storage: &Path, args: &[&str]) -> (RunSpec, String) {
    let complete = completed::<FsdpFlags>(storage, args).unwrap();
    let line = std::iter::once(OsString::from("train_fsdp")).chain(complete.args);
    let spec = FsdpFlags::try_parse_from(line).unwrap().into_spec();
    (spec.unwrap(), complete.notes.join("\n"))
}

const OWN: [&str; 12] = [
    "--tp_size=2",
    "--dp_size=2",
    "--num_workers=4",
    "--model_name=some/model",
    "--learning_rate=3e-4",
    "--max_steps=9",
    "--autocast",
    "--recompute=full",
    "--lr_scheduler=warmup_stable_decay",
    "--decay_steps=3",
    "--num_to_keep=2",
    "--profile=4",
];

#[test]
fn a_run_goes_on_with_its_own_flags() {
    let storage = tempfile::tempdir().unwrap();
    run(storage.path(), &OWN);
    let (spec, notes) = fsdp(storage.path(), &[]);
    let written = |spec: &RunSpec| serde_json::to_value(spec).unwrap();
    let text = fs::read_to_string(storage.path().join("night/run_config.json")).unwrap();
    let mut first: Value = serde_json::from_str(&text).unwrap();
    // It is about one start.
    first["flags"]["profile"] = 0.into();
    assert_eq!(written(&spec)["flags"], first["flags"]);
    assert_eq!(spec.checkpoints.kept.num_to_keep, Some(2));
    assert_eq!(spec.output.experiment.name.continued(), Some("night"));
    assert!(notes.contains("--learning_rate 0.0003"), "{notes}");
    assert!(
        !notes.contains("differs") && !notes.contains("--seed"),
        "{notes}"
    );
}

#[test]
fn what_is_given_wins_and_is_shown() {
    let storage = tempfile::tempdir().unwrap();
    run(storage.path(), &OWN);
    let args = [
        "--tp_size=4",
        "--num_workers=4",
        "--num_epochs",
        "2",
        "--lr_scheduler=cosine",
    ];
    let (spec, notes) = fsdp(storage.path(), &args);
    let mesh = spec.compute.engine.mesh;
    assert_eq!((mesh.tp_size(), mesh.dp_size()), (4, 1));
    let training = &spec.compute.training;
    assert_eq!((training.num_epochs, training.max_steps), (2, 0));
    for words in [
        "--tp_size 4, was 2",
        "--dp_size 1, was 2",
        "--lr_scheduler cosine, was warmup_stable_decay",
        "not --decay_steps 3",
        "not --max_steps 9",
    ] {
        assert!(notes.contains(words), "{words}: {notes}");
    }
    assert!(!notes.contains("--num_workers 4"), "{notes}");
    let (spec, _) = fsdp(storage.path(), &["--num_workers=2"]);
    assert_eq!(spec.compute.engine.mesh.dp_size(), 1);
    let (spec, _) = fsdp(
        storage.path(),
        &["--dtype=fp32", "--activation_checkpointing"],
    );
    assert_eq!(spec.compute.engine.recompute, None);
    let problem = completed::<FsdpFlags>(storage.path(), &["--num_workers=3"]).unwrap_err();
    assert!(problem.contains("multiple of 2"), "{problem}");
}

#[test]
fn another_strategy_has_its_own_defaults() {
    let storage = tempfile::tempdir().unwrap();
    run(storage.path(), &OWN);
    let complete = completed::<DeepSpeedFlags>(storage.path(), &[]).unwrap();
    let notes = complete.notes.join("\n");
    assert!(notes.contains("train_deepspeed, was train_fsdp"), "{notes}");
    let line = std::iter::once(OsString::from("train_deepspeed")).chain(complete.args);
    let flags = DeepSpeedFlags::try_parse_from(line).unwrap();
    assert_eq!((flags.zero_stage, flags.common.tp_size), (1, 2));
    assert_eq!(flags.common.model_name, "some/model");
}

#[test]
fn a_run_on_ray_goes_on_there_unless_another_place_is_given() {
    let storage = tempfile::tempdir().unwrap();
    let place = format!("--storage_path={}", storage.path().display());
    let ray = [
        "--cluster=ray",
        &place,
        "--ray_address=head:6379",
        "--resources_per_worker=CPU=2,slot=1",
        "--label_selector=zone=a",
        "--hang_timeout_s=99",
    ];
    run(storage.path(), &[&OWN[..], &ray[..]].concat());
    let (spec, _) = fsdp(storage.path(), &[]);
    let kept = serde_json::to_value(&spec.cluster.ray).unwrap();
    assert_eq!(kept["address"], "head:6379");
    assert_eq!(
        kept["resources_per_worker"],
        json!({"CPU": 2.0, "slot": 1.0})
    );
    assert_eq!(kept["label_selector"], json!({"zone": "a"}));
    let (spec, _) = fsdp(storage.path(), &["--cluster", "local"]);
    assert!(spec.cluster.ray.is_none());
    assert_eq!(spec.checkpoints.watch.hang_timeout_s, 99);
}

#[test]
fn a_run_that_is_not_there_or_has_no_flags_is_explained() {
    let storage = tempfile::tempdir().unwrap();
    let problem = completed::<FsdpFlags>(storage.path(), &[]).unwrap_err();
    assert!(problem.contains("there is no checkpoint in"), "{problem}");
    fs::create_dir(storage.path().join("night")).unwrap();
    let file = storage.path().join("night/run_config.json");
    for text in ["", "{", "[]", "{}", r#"{"entry_point": "x", "flags": 1}"#] {
        fs::write(&file, text).unwrap();
        let problem = completed::<FsdpFlags>(storage.path(), &[]).unwrap_err();
        assert!(problem.contains("run_config.json"), "{problem}");
        let all = ["--tp_size=1", "--num_workers=1"];
        assert!(completed::<FsdpFlags>(storage.path(), &all).is_ok());
    }
    let odd = r#"{"entry_point": "x", "flags": {"tp_size": [[1]]}, "run": {}, "ray": {}}"#;
    fs::write(&file, odd).unwrap();
    let problem = completed::<FsdpFlags>(storage.path(), &[]).unwrap_err();
    assert!(problem.contains("which no flag takes"), "{problem}");
    fs::remove_file(&file).unwrap();
    let problem = completed::<FsdpFlags>(storage.path(), &[]).unwrap_err();
    assert!(problem.contains("there is no such file"), "{problem}");
}
