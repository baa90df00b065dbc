//! One program under three names.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use crate::demo::{Run, kill, train, wait_until, workers_of};
use crate::programs::copy_program;

const TANDEM: &str = env!("CARGO_BIN_EXE_tandem");

fn printed(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn the_name_or_the_first_argument_decides() {
    for name in ["train_fsdp", "train_deepspeed"] {
        let mut by_name = Command::new(TANDEM);
        by_name.arg0(format!("/some/where/{name}"));
        let mut by_argument = Command::new(TANDEM);
        by_argument.arg(name);
        for mut command in [by_name, by_argument] {
            let output = command.arg("--help").output().unwrap();
            let text = printed(&output);
            assert!(output.status.success(), "{text}");
            assert!(text.contains(&format!("Usage: {name}")), "{text}");
        }
    }
    let output = Command::new(TANDEM).arg("--help").output().unwrap();
    assert!(printed(&output).contains("Usage: tandem"));
}

#[test]
fn a_name_without_the_program_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("train_fsdp");
    copy_program(env!("CARGO_BIN_EXE_train_fsdp"), &alone);
    let output = Command::new(&alone).output().unwrap();
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let missing = folder.path().join("tandem");
    assert!(text.contains(missing.to_str().unwrap()), "{text}");
    assert!(text.contains("into one folder"), "{text}");
}

#[test]
fn controller_and_workers_are_listed_by_the_name_of_the_entry_point() {
    let run = Run::new("deepspeed", 1, 2).args(["--num_epochs", "1000"]);
    let mut child = train(&run).stderr(Stdio::null()).spawn().unwrap();
    run.wait_for_steps(1);
    let listed = |pid: u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.unwrap_or_default().trim().to_owned()
    };
    let workers = workers_of(child.id());
    assert_eq!(workers.len(), 2, "{workers:?}");
    let all = workers.iter().map(|(_, pid)| *pid).chain([child.id()]);
    let names: Vec<String> = all.map(listed).collect();
    kill(child.id(), "INT");
    kill(child.id(), "INT");
    wait_until("the run has ended", || {
        workers.iter().all(|(_, pid)| listed(*pid).is_empty())
    });
    child.wait().unwrap();
    assert_eq!(names, ["train_deepspeed"; 3]);
}
