//! `cargo xtask gpu`: what `tandem doctor --gpu` checks, with a program that is built now, and which can be carried elsewhere.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup;
use crate::workspace::Workspace;

/// The most bytes that the program may have, to be carried to a machine with a GPU.
const LARGEST: u64 = 40 << 20;

/// Builds, checks, and leaves gpu.json, gpu.md and the program itself, one small file, in the folder `gpu` of cargo's target
/// folder; the first two elsewhere, if the arguments name another.
pub fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    let libtorch = setup::run(workspace, &setup::Request::default())?;
    workspace.build_release()?;
    let folder = workspace.target_dir()?.join("gpu");
    let program = packed(&workspace.release_binary("tandem")?, &folder)?;
    let mut command = Command::new(program);
    libtorch.give_to(&mut command);
    command.args(["doctor", "--gpu"]);
    if !names(arguments, "--output") {
        command.arg("--output").arg(folder);
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

/// The program without its debug information, in `folder`.
fn packed(program: &Path, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let packed = folder.join("tandem");
    let status = Command::new("strip")
        .arg("-o")
        .args([&packed, program])
        .status()
        .context("cannot start `strip`, of the same package as the linker")?;
    if !status.success() {
        bail!("`strip` failed on {} ({status})", program.display());
    }
    let size = fs::metadata(&packed)
        .with_context(|| format!("cannot read {}", packed.display()))?
        .len();
    println!("{}: {:.1} MB", packed.display(), size as f64 / 1e6);
    if size > LARGEST {
        bail!(
            "{} has {size} bytes, and {LARGEST} are allowed: it is meant to be carried along",
            packed.display()
        );
    }
    Ok(packed)
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
