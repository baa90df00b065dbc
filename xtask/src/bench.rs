//! `cargo xtask bench`: one name for each measurement of this project.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup;
use crate::workspace::Workspace;

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bench {
    /// Step time, memory and distance from the matrix-multiplication floor of whole training steps.
    Step,
    /// Collectives.
    Comm,
    /// Writing and reading checkpoints.
    Checkpoint,
}

impl Bench {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "step" => Some(Self::Step),
            "comm" => Some(Self::Comm),
            "checkpoint" => Some(Self::Checkpoint),
            _ => None,
        }
    }
}

/// Builds with optimisation and runs one measurement; `arguments` are passed on to it.
pub fn run(workspace: &Workspace, bench: Bench, arguments: &[OsString]) -> Result<()> {
    setup::run(workspace, false)?;
    let mut command = match bench {
        Bench::Step => {
            workspace.build_release()?;
            let mut command = Command::new(workspace.release_binary("tandem")?);
            command.args(["bench", "step"]).args(arguments);
            command
        }
        Bench::Comm => cargo_bench(workspace, "tandem-comm", arguments),
        Bench::Checkpoint => cargo_bench(workspace, "tandem-checkpoint", arguments),
    };
    let status = command.status().context("cannot start the benchmark")?;
    if !status.success() {
        bail!("the benchmark failed ({status})");
    }
    Ok(())
}

fn cargo_bench(workspace: &Workspace, package: &str, arguments: &[OsString]) -> Command {
    let mut command = workspace.cargo();
    command
        .args(["bench", "--package", package, "--"])
        .args(arguments);
    command
}
