//! The stages for the Python part, in a virtual environment of this checkout.

use std::process::Command;

use anyhow::Result;

use super::{Options, Stage};
use crate::python_environment;
use crate::workspace::Workspace;

/// What the tests may take in all. Each has a limit of its own (`pyproject.toml`); this one also ends a test that cannot be
/// interrupted.
const LIMIT_S: &str = "2400";

/// Lints and tests of `python/`; none where that folder has no tests.
pub fn stages(workspace: &Workspace, options: &Options) -> Result<Vec<Stage>> {
    let package = workspace.root().join("python");
    if !package.join("tests").is_dir() {
        return Ok(Vec::new());
    }
    let environment = python_environment::prepare(workspace)?;
    let binaries = workspace.target_dir()?.join("debug");
    let stage = |name, program: &str, arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=30", LIMIT_S])
            .arg(environment.join("bin").join(program))
            .args(arguments)
            .current_dir(workspace.root())
            // The package is tested from its sources: its wheel would build all binaries once more.
            .env("PYTHONPATH", &package)
            // The tests of the crates have just built these.
            .env("TANDEM_REAL_BIN_DIR", &binaries)
            .env("RAY_USAGE_STATS_ENABLED", "0");
        Stage::new(name, command)
    };
    let mut stages = Vec::new();
    if options.filter.is_none() {
        stages.push(stage(
            "Python format",
            "ruff",
            &["format", "--check", "python"],
        ));
        stages.push(stage("Python lints", "ruff", &["check", "python"]));
    }
    let mut tests = stage("Python tests", "python", &["-m", "pytest", "python"]);
    for command in &mut tests.commands {
        if !options.long {
            command.args(["-m", "not long"]);
        }
        if let Some(filter) = &options.filter {
            command.args(["-k", filter]);
        }
    }
    stages.push(tests);
    Ok(stages)
}
