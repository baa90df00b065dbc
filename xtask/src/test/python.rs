//! The stages for the Python part, in a virtual environment of this checkout.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Options, Stage};
use crate::workspace::Workspace;

/// What the package and its tests need; see `pyproject.toml`. ruff is pinned, because its rules change between releases.
const REQUIREMENTS: [&str; 4] = ["ruff==0.17.6", "pytest>=8", "pyyaml>=6", "ray[train]>=2.51"];

/// The tests that start no Ray.
const WITHOUT_RAY: [&str; 3] = [
    "python/tests/test_protocol.py",
    "python/tests/test_ranks.py",
    "python/tests/test_cluster_resources.py",
];

/// Lints and tests of `python/`; none where that folder has no tests.
pub fn stages(workspace: &Workspace, options: &Options) -> Result<Vec<Stage>> {
    let package = workspace.root().join("python");
    if !package.join("tests").is_dir() {
        return Ok(Vec::new());
    }
    let environment = workspace.root().join(".venv");
    prepare(&environment)?;
    let stage = |name, program: &str, arguments: &[&str]| {
        let mut command = Command::new(environment.join("bin").join(program));
        command
            .args(arguments)
            .current_dir(workspace.root())
            // The package is tested from its sources: its wheel would build all binaries once more.
            .env("PYTHONPATH", &package)
            .env("RAY_USAGE_STATS_ENABLED", "0");
        Stage { name, command }
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
    // Tests that start a Ray cluster run in the long form only.
    let mut tests = stage("Python tests", "python", &["-m", "pytest"]);
    if options.long {
        tests.command.arg("python");
    } else {
        tests.command.args(WITHOUT_RAY);
    }
    if let Some(filter) = &options.filter {
        tests.command.args(["-k", filter]);
    }
    stages.push(tests);
    Ok(stages)
}

/// Makes the virtual environment where it is missing, and installs what the stages need.
fn prepare(environment: &Path) -> Result<()> {
    let python = environment.join("bin/python");
    if !python.exists() {
        let mut create = Command::new("python3");
        create.args(["-m", "venv"]).arg(environment);
        run(
            create,
            "cannot create .venv (on Debian and Ubuntu: apt install python3-venv)",
        )?;
    }
    let mut install = Command::new(python);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    install.args(REQUIREMENTS);
    run(install, "cannot install the Python test tools into .venv")
}

fn run(mut command: Command, complaint: &'static str) -> Result<()> {
    let status = command.status().context(complaint)?;
    if !status.success() {
        bail!("{complaint}");
    }
    Ok(())
}
