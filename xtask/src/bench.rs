//! `cargo xtask bench`: one name for each measurement of this project.

mod plan;
mod ray;
mod step;

use std::ffi::OsString;

use anyhow::{Context, Result, bail};

use crate::setup;
use crate::workspace::Workspace;

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bench {
    /// Step time, memory and distance from the floor of whole training steps, side by side with the same work in PyTorch.
    Step,
    /// Collectives.
    Comm,
    /// Writing and reading checkpoints.
    Checkpoint,
    /// What saving costs a run, and how soon it recovers.
    Recovery,
    /// How fast a dataset becomes tokens.
    Tokenize,
    /// What `tandem plan` predicts, beside what is.
    Plan,
    /// What Ray costs a run beside the local controller: until its first step, per step, and at its end.
    Ray,
}

impl Bench {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "step" => Some(Self::Step),
            "comm" => Some(Self::Comm),
            "checkpoint" => Some(Self::Checkpoint),
            "recovery" => Some(Self::Recovery),
            "tokenize" => Some(Self::Tokenize),
            "plan" => Some(Self::Plan),
            "ray" => Some(Self::Ray),
            _ => None,
        }
    }
}

/// Runs one measurement; `arguments` are its own.
pub fn run(workspace: &Workspace, bench: Bench, arguments: &[OsString]) -> Result<()> {
    match bench {
        Bench::Step => step::run(workspace, arguments),
        Bench::Comm => cargo_bench(workspace, "tandem-comm", arguments),
        Bench::Checkpoint => cargo_bench(workspace, "tandem-checkpoint", arguments),
        Bench::Recovery => cargo_bench(workspace, "tandem-cli", arguments),
        Bench::Tokenize => cargo_bench(workspace, "tandem-data", arguments),
        Bench::Plan => plan::run(workspace, arguments),
        Bench::Ray => ray::run(workspace, arguments),
    }
}

/// Builds with optimisation and runs the benchmarks of one package.
fn cargo_bench(workspace: &Workspace, package: &str, arguments: &[OsString]) -> Result<()> {
    let libtorch = setup::run(workspace, &setup::Request::default())?;
    let mut command = workspace.cargo();
    libtorch.give_to(&mut command);
    let status = command
        .args(["bench", "--package", package, "--"])
        .args(arguments)
        .status()
        .context("cannot start the benchmark")?;
    if !status.success() {
        bail!("the benchmark failed ({status})");
    }
    Ok(())
}
