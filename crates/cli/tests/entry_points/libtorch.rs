//! Which libtorch is used, and what is said where none serves.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::demo::{Run, train};
use crate::programs::copy_program;

fn run() -> Run {
    Run::new("fsdp", 1, 1).args(["--max_steps", "1", "--dataset_percentage", "100"])
}

/// What a run says that is refused with this libtorch.
fn refused_with(libtorch: &Path) -> String {
    let run = run();
    let mut command = train(&run);
    command.env("TANDEM_LIBTORCH", libtorch);
    refused(&run, command)
}

/// What the run says when it is refused; nothing is left of it.
fn refused(run: &Run, mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{text}");
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(!run.dir().exists(), "a folder of the run is left");
    text
}

/// A folder that says to be torch, with something in place of its library.
fn package(folder: &Path, version: &str, library: &str) {
    fs::create_dir_all(folder.join("lib")).unwrap();
    fs::write(folder.join("lib/libtorch_cpu.so"), library).unwrap();
    let text = format!("__version__ = '{version}'\n");
    fs::write(folder.join("version.py"), text).unwrap();
}

#[test]
fn none_anywhere() {
    // A copy outside of the checkout, with nothing of Python around.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("tandem");
    copy_program(env!("CARGO_BIN_EXE_tandem"), &program);
    let run = run();
    let mut command = Command::new(&program);
    command.arg("train_fsdp").args(train(&run).get_args());
    command.env("PATH", folder.path());
    for name in ["TANDEM_LIBTORCH", "LIBTORCH", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(name);
    }
    let text = refused(&run, command);
    assert!(text.contains("there is no libtorch here"), "{text}");
    assert!(text.contains("pip install 'torch>=2.10"), "{text}");
}

#[test]
fn a_folder_without_one_and_one_that_is_too_old() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = folder.path().join("nothing");
    let text = refused_with(&nothing);
    assert!(text.contains(nothing.to_str().unwrap()), "{text}");
    assert!(text.contains("TANDEM_LIBTORCH"), "{text}");

    let old = folder.path().join("old");
    package(&old, "2.9.1+cu128", "");
    let text = refused_with(&old);
    assert!(text.contains("2.9.1") && text.contains("2.10"), "{text}");
}

#[test]
fn a_broken_one() {
    let folder = tempfile::tempdir().unwrap();
    package(folder.path(), "2.13.0", "not a library");
    let text = refused_with(folder.path());
    assert!(text.contains("libtorch_cpu.so does not load: "), "{text}");
}

#[test]
fn the_run_and_the_doctor_say_which_one_computes() {
    let run = run();
    let folder = run.succeed();
    let text = fs::read_to_string(folder.join("run.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let used = record["facts"]["libtorch"].as_str().unwrap();

    let mut doctor = Command::new(env!("CARGO_BIN_EXE_tandem"));
    let output = doctor.args(["doctor", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["problems"], serde_json::json!([]), "{report}");
    let sections = report["sections"].as_array().unwrap();
    let facts = |name: &str| {
        let section = sections.iter().find(|section| section["name"] == name);
        section.unwrap()["facts"].as_array().unwrap().clone()
    };
    let libtorch = facts("libtorch");
    for name in ["release", "folder", "found through"] {
        let fact = libtorch.iter().find(|fact| fact["name"] == name).unwrap();
        let value = fact["value"].as_str().unwrap();
        assert!(used.contains(value), "{value} is not in {used}");
    }
    let cores = &facts("processor")[1]["value"];
    assert!(cores.as_str().unwrap().parse::<usize>().unwrap() > 0);
}

#[test]
fn the_doctor_names_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    package(folder.path(), "2.9.1", "");
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_tandem"));
    doctor.arg("doctor").env("TANDEM_LIBTORCH", folder.path());
    let output = doctor.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("problem: the libtorch in "), "{text}");
}

/// Its idle threads sleep, unless the user says how they wait.
#[test]
fn idle_threads_leave_their_cores_to_others() {
    let waits = |given: Option<(&str, &str)>| {
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_tandem"));
        doctor.arg("doctor");
        for name in ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"] {
            doctor.env_remove(name);
        }
        let output = doctor.envs(given).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let about = |line: &String| line.starts_with("OMP_WAIT_POLICY") || line.starts_with("GOMP");
        lines.filter(about).collect::<Vec<_>>()
    };
    assert_eq!(waits(None), ["OMP_WAIT_POLICY passive"]);
    let active = ("OMP_WAIT_POLICY", "active");
    assert_eq!(waits(Some(active)), ["OMP_WAIT_POLICY active"]);
    assert_eq!(
        waits(Some(("GOMP_SPINCOUNT", "1000"))),
        ["GOMP_SPINCOUNT 1000"]
    );
}
