//! `cargo xtask test`: everything that must hold before a change is taken, in stages.
//!
//! Every stage runs even when an earlier one failed, so that one run shows all there is to mend; the output of cargo
//! and pytest goes to the terminal as it comes, and is counted on the way.

mod count;
mod python;
mod versions;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::count::Count;
use self::versions::Extent;
use crate::python_environment;
use crate::setup;
use crate::setup::releases::Release;
use crate::workspace::{TESTED_FEATURES, Workspace};

/// Chooses the packages that are tested besides xtask. All that builds them uses this: with other packages, the features of
/// dependencies differ, and much is compiled again.
const CRATES: [&str; 3] = ["--workspace", "--exclude=xtask", TESTED_FEATURES];

/// What of the tests to run.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// Also the tests that are marked `#[ignore]` because they take minutes.
    pub long: bool,
    /// How many processes the test of kills kills; what it usually does when it is not told.
    pub kills: Option<u32>,
    /// Only tests whose name contains this; leaves out formatting and lints.
    pub filter: Option<String>,
    /// If not empty, only the tests that depend on libtorch, with each of these.
    pub torch: Vec<&'static Release>,
}

impl Options {
    /// Whether tests with `word` in their name are among those that run.
    fn runs(&self, word: &str) -> bool {
        let filter = self.filter.as_deref();
        filter.is_none_or(|filter| filter.contains(word) || word.contains(filter))
    }

    /// Whether tests with torchrun or with transformers are.
    fn needs_torch(&self) -> bool {
        let words = ["torchrun", "exports", "recorded"];
        self.long && words.iter().any(|word| self.runs(word))
    }
}

/// One line of the table: commands that all run, in order.
struct Stage {
    name: String,
    commands: Vec<Command>,
}

impl Stage {
    fn new(name: &str, command: Command) -> Self {
        Self {
            name: name.to_owned(),
            commands: vec![command],
        }
    }
}

/// How a stage went.
struct StageResult {
    name: String,
    succeeded: bool,
    count: Count,
    elapsed: Duration,
}

impl StageResult {
    /// Of a stage that failed before its first command.
    fn not_started(name: String) -> Self {
        Self {
            name,
            succeeded: false,
            count: Count::default(),
            elapsed: Duration::ZERO,
        }
    }
}

/// Runs set-up and then all stages; errors if any failed.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut outcomes = Vec::new();
    let mut on_versions = Vec::new();
    if options.torch.is_empty() {
        let libtorch = setup::run(workspace, &setup::Request::default())?;
        for mut stage in stages(workspace, options)? {
            for command in &mut stage.commands {
                libtorch.give_to(command);
            }
            outcomes.push(run_stage(stage)?);
        }
        on_versions.extend(versions::wanted(options, libtorch.number()));
    } else {
        let full = |release: &&'static Release| (*release, Extent::Full);
        on_versions.extend(options.torch.iter().map(full));
    }
    if !on_versions.is_empty() {
        outcomes.extend(run_versions(workspace, options, &on_versions)?);
    }
    summarise(&outcomes, options)
}

/// Runs the stages of other versions of libtorch. One that cannot be fetched fails its stage and no other.
fn run_versions(
    workspace: &Workspace,
    options: &Options,
    wanted: &[(&'static Release, Extent)],
) -> Result<Vec<StageResult>> {
    let binaries = versions::build(workspace)?;
    let mut outcomes = Vec::new();
    for &(release, extent) in wanted {
        let name = versions::name(release, extent);
        println!("\n== {name}");
        outcomes.push(
            match versions::stage(workspace, &binaries, release, extent, options) {
                Ok(stage) => run_stage(stage)?,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    StageResult::not_started(name)
                }
            },
        );
    }
    Ok(outcomes)
}

fn stages(workspace: &Workspace, options: &Options) -> Result<Vec<Stage>> {
    let stage = |name, arguments: &[&str]| {
        let mut command = workspace.cargo();
        command.args(arguments);
        Stage::new(name, command)
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
        // Nothing else builds comm without NCCL: all other packages want it.
        stages.push(stage(
            "without nccl",
            &[
                "check",
                "--package=tandem-comm",
                "--no-default-features",
                "--lib",
            ],
        ));
    }
    if options.filter.is_none() {
        stages.push(docs(workspace));
        stages.extend(licences(workspace));
    }
    let mut tests = [
        stage(
            "xtask and tidy",
            &["test", "--package=xtask", "--no-fail-fast"],
        ),
        stage("crates", &["test", "--no-fail-fast"]),
    ];
    for command in &mut tests[1].commands {
        command.args(CRATES);
    }
    let torch = match options.needs_torch() {
        true => Some(python_environment::prepare_torch(workspace)?),
        false => None,
    };
    for command in tests.iter_mut().flat_map(|stage| &mut stage.commands) {
        command.args(&options.filter);
        if options.long {
            command.args(["--", "--include-ignored"]);
        }
        if let Some(folder) = &torch {
            command.env("TANDEM_TORCH_BIN_DIR", folder);
        }
        if let Some(kills) = options.kills {
            command.env("TANDEM_TEST_KILLS", kills.to_string());
        }
    }
    stages.extend(tests);
    stages.extend(python::stages(workspace, options)?);
    if options.long && options.runs("real-model") {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("real-model");
        stages.push(Stage::new("real model", command));
    }
    Ok(stages)
}

/// The documentation of our crates, in which a warning is mostly a link that leads nowhere. It reuses what the lints have
/// compiled.
fn docs(workspace: &Workspace) -> Stage {
    let mut command = workspace.cargo();
    command.args(["doc", "--no-deps"]).args(CRATES);
    command.env("RUSTDOCFLAGS", "-D warnings");
    Stage::new("docs", command)
}

/// Licences, bans and sources of dependencies (`deny.toml`), where cargo-deny is installed: it is no part of Rust, and the
/// workflow always has it.
fn licences(workspace: &Workspace) -> Option<Stage> {
    let mut look = workspace.cargo();
    look.args(["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let is_there = look.status().is_ok_and(|status| status.success());
    let mut command = workspace.cargo();
    command.args(["deny", "--offline", "check", "licenses", "bans", "sources"]);
    is_there.then(|| Stage::new("dependencies", command))
}

/// Runs one stage, all of its commands even where one fails.
fn run_stage(stage: Stage) -> Result<StageResult> {
    let Stage { name, commands } = stage;
    let start = Instant::now();
    let mut count = Count::default();
    let mut succeeded = true;
    for command in commands {
        println!("\n== {name}: {}", shown(&command));
        succeeded &= run_command(command, &mut count)?;
    }
    Ok(StageResult {
        name,
        succeeded,
        count,
        elapsed: start.elapsed(),
    })
}

/// Runs one command, passing its standard output on line by line while counting the tests in it; returns whether it
/// succeeded.
fn run_command(mut command: Command, count: &mut Count) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(&command)))?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let text = String::from_utf8_lossy(&line);
            count.read_line(&text);
            println!("{text}");
        }
    }
    Ok(child.wait()?.success())
}

/// Prints the table of stages and the closing line.
fn summarise(outcomes: &[StageResult], options: &Options) -> Result<()> {
    println!();
    let mut total = Count::default();
    let mut failed_stages = Vec::new();
    for StageResult {
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
            "{name:<18} {result:<8} {:>6.1} s  {tests}",
            elapsed.as_secs_f64()
        );
        total += *count;
        if !succeeded {
            failed_stages.push(name.as_str());
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
        Stage::new("script", command)
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
    fn all_commands_of_a_stage_run_and_one_failure_fails_it() {
        let mut both = stage("echo 'test result: FAILED. 1 passed; 2 failed;'; exit 101");
        let good = stage("echo 'test result: ok. 3 passed; 0 failed;'");
        both.commands.extend(good.commands);
        let outcome = run_stage(both).expect("runs");
        assert!(!outcome.succeeded);
        assert_eq!((outcome.count.passed, outcome.count.failed), (4, 2));
    }

    #[test]
    fn a_version_that_is_not_there_is_a_failure() {
        let missing = StageResult::not_started("torch 2.10.0".into());
        let error = summarise(&[missing], &Options::default()).expect_err("it did not run");
        assert_eq!(error.to_string(), "failed: torch 2.10.0");
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
