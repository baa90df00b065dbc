//! `cargo xtask gpu`: what `tandem doctor --gpu` checks, with a program that is built now and a Python that has torch.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup;
use crate::workspace::Workspace;

/// Builds, checks, and leaves gpu.json and gpu.md in the folder `gpu` of cargo's target folder, unless the arguments name another.
pub fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    let libtorch = setup::run(workspace, &setup::Request::default())?;
    workspace.build_release()?;
    let mut command = Command::new(workspace.release_binary("tandem")?);
    libtorch.give_to(&mut command);
    command.args(["doctor", "--gpu"]);
    if !names(arguments, "--output") {
        command
            .arg("--output")
            .arg(workspace.target_dir()?.join("gpu"));
    }
    let status = command
        .args(arguments)
        .status()
        .context("cannot start `tandem doctor --gpu`")?;
    if !status.success() {
        bail!("some stages failed ({status}); what they found is in gpu.md and gpu.json");
    }
    Ok(())
}

/// Whether a flag is among the arguments, with its value behind it or in it.
fn names(arguments: &[OsString], flag: &str) -> bool {
    arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        let rest = argument.strip_prefix(flag);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_found_in_both_forms() {
        let found = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            names(&arguments, "--output")
        };
        assert!(found(&["--quick", "--output", "x"]) && found(&["--output=x"]));
        assert!(!found(&["--outputs=x"]) && !found(&[]));
    }
}
