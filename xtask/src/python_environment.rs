//! The virtual environments of this checkout: one with Ray and the tools that test and check `python/`, one with torch and what
//! Hugging Face makes of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// What the package and its tests need; see `pyproject.toml`. ruff is pinned, because its rules change between releases, and
/// Ray, because some tests reach into it.
const REQUIREMENTS: [&str; 5] = [
    "ruff==0.17.6",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pyyaml>=6",
    "ray[train]==2.60.0",
];

/// torchrun, and what reads our exports and judges our numbers. It takes the whole torch package, which does not start without
/// CUDA's libraries (5 GB). All is pinned: what is compared with these is compared with one release.
const TORCH: [&str; 5] = [
    "torch==2.13.0",
    "transformers==5.23.0",
    "peft==0.21.2",
    "safetensors==0.8.0",
    "gguf==0.19.0",
];

/// Makes the environment where it is missing, installs what is needed, and returns its folder.
pub fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    install(workspace, ".venv", &REQUIREMENTS)
}

/// As [`prepare`], for the folder of the programs `python`, with torch, transformers, PEFT and gguf, and `torchrun`.
pub fn prepare_torch(workspace: &Workspace) -> Result<PathBuf> {
    Ok(install(workspace, ".venv-torch", &TORCH)?.join("bin"))
}

fn install(workspace: &Workspace, folder: &str, requirements: &[&str]) -> Result<PathBuf> {
    let environment = workspace.root().join(folder);
    let python = environment.join("bin/python");
    if !python.exists() {
        create(&environment)?;
    }
    let mut install = Command::new(python);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    install.args(requirements);
    run(install, "cannot install what tests need from Python")?;
    Ok(environment)
}

fn create(environment: &Path) -> Result<()> {
    let mut create = Command::new("python3");
    create.args(["-m", "venv"]).arg(environment);
    run(
        create,
        "cannot create a virtual environment (on Debian and Ubuntu: apt install python3-venv)",
    )
}

fn run(mut command: Command, complaint: &'static str) -> Result<()> {
    let status = command.status().context(complaint)?;
    if !status.success() {
        bail!("{complaint}");
    }
    Ok(())
}
