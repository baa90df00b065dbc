//! `cargo xtask test`: everything that must hold before a change is taken, in stages.
//!
//! Every stage runs even when an earlier one failed, so that one run shows all there is to mend; the output of cargo
//! and pytest goes to the terminal as it comes, and is counted on the way.

mod count;
mod python;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::count::Count;
use crate::python_environment;
use crate::setup;
use crate::workspace::{TESTED_FEATURES, Workspace};

/// What of the tests to run.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// Also the tests that are marked `#[ignore]` because they take minutes.
    pub long: bool,
    /// Only tests whose name contains this; leaves out formatting and lints.
    pub filter: Option<String>,
}

impl Options {
    /// Whether the tests with torchrun itself are among those that run.
    fn needs_torchrun(&self) -> bool {
        let filter = self.filter.as_deref();
        self.long && filter.is_none_or(|filter| filter.contains("torchrun"))
    }
}

/// One command of the run.
struct Stage {
    name: &'static str,
    command: Command,
}

/// How a stage went.
struct Outcome {
    name: &'static str,
    succeeded: bool,
    count: Count,
    elapsed: Duration,
}

/// Runs set-up and then all stages; errors if any failed.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::run(workspace, false)?;
    let mut outcomes = Vec::new();
    for stage in stages(workspace, options)? {
        outcomes.push(run_stage(stage)?);
    }
    summarise(&outcomes, options)
}

fn stages(workspace: &Workspace, options: &Options) -> Result<Vec<Stage>> {
    let stage = |name, arguments: &[&str]| {
        let mut command = workspace.cargo();
        command.args(arguments);
        Stage { name, command }
    };
    let mut stages = Vec::new();
    if options.filter.is_none() {
        stages.push(stage("format", &["fmt", "--all", "--check"]));
        stages.push(stage(
            "lints",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ));
    }
    let mut tests = [
        stage(
            "xtask and tidy",
            &["test", "--package=xtask", "--no-fail-fast"],
        ),
        stage(
            "crates",
            &[
                "test",
                "--workspace",
                "--exclude=xtask",
                TESTED_FEATURES,
                "--no-fail-fast",
            ],
        ),
    ];
    let torchrun = match options.needs_torchrun() {
        true => Some(python_environment::prepare_torchrun(workspace)?),
        false => None,
    };
    for Stage { command, .. } in &mut tests {
        command.args(&options.filter);
        if options.long {
            command.args(["--", "--include-ignored"]);
        }
        if let Some(folder) = &torchrun {
            command.env("TANDEM_TORCHRUN_DIR", folder);
        }
    }
    stages.extend(tests);
    stages.extend(python::stages(workspace, options)?);
    Ok(stages)
}

/// Runs one stage, passing its standard output on line by line while counting the tests in it.
fn run_stage(stage: Stage) -> Result<Outcome> {
    let Stage { name, mut command } = stage;
    println!("\n== {name}: {}", shown(&command));
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(&command)))?;
    let mut count = Count::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let text = String::from_utf8_lossy(&line);
            count.read_line(&text);
            println!("{text}");
        }
    }
    Ok(Outcome {
        name,
        succeeded: child.wait()?.success(),
        count,
        elapsed: start.elapsed(),
    })
}

/// Prints the table of stages and the closing line.
fn summarise(outcomes: &[Outcome], options: &Options) -> Result<()> {
    println!();
    let mut total = Count::default();
    let mut failed_stages = Vec::new();
    for Outcome {
        name,
        succeeded,
        count,
        elapsed,
    } in outcomes
    {
        let result = if *succeeded { "ok" } else { "FAILED" };
        let tests = if *count == Count::default() {
            String::new()
        } else {
            count.to_string()
        };
        println!(
            "{name:<16} {result:<8} {:>6.1} s  {tests}",
            elapsed.as_secs_f64()
        );
        total += *count;
        if !succeeded {
            failed_stages.push(*name);
        }
    }
    if let Some(filter) = &options.filter
        && total.passed + total.failed == 0
        && failed_stages.is_empty()
    {
        bail!("no test has {filter:?} in its name");
    }
    println!("xtask test: {total}");
    if !failed_stages.is_empty() {
        bail!("failed: {}", failed_stages.join(", "));
    }
    Ok(())
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    let name = command.get_program().to_string_lossy();
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    command.get_args().fold(name, |line, argument| {
        format!("{line} {}", argument.to_string_lossy())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(script: &str) -> Stage {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Stage {
            name: "script",
            command,
        }
    }

    #[test]
    fn a_stage_is_counted_and_its_exit_code_decides() {
        let good = run_stage(stage("echo 'test result: ok. 3 passed; 0 failed;'")).expect("runs");
        assert_eq!((good.succeeded, good.count.passed), (true, 3));
        let bad = run_stage(stage(
            "echo 'test result: FAILED. 1 passed; 2 failed;'; exit 101",
        ))
        .expect("runs");
        assert_eq!((bad.succeeded, bad.count.failed), (false, 2));
        summarise(&[good], &Options::default()).expect("all is well");
        let error = summarise(&[bad], &Options::default()).expect_err("a stage failed");
        assert_eq!(error.to_string(), "failed: script");
    }

    #[test]
    fn a_filter_that_matches_nothing_is_a_failure() {
        let none = run_stage(stage("echo 'test result: ok. 0 passed; 0 failed;'")).expect("runs");
        let options = Options {
            filter: Some("typo".into()),
            ..Options::default()
        };
        let error = summarise(&[none], &options).expect_err("nothing ran");
        assert!(error.to_string().contains("typo"), "{error}");
    }
}
