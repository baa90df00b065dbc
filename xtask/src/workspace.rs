//! Where this checkout is, and how to call cargo in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What tests switch on. A library with other features is another one to cargo, and is compiled again with all that uses it.
pub const TESTED_FEATURES: &str = "--features=tandem-cli/object-storage";

/// This checkout.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The checkout that this xtask was compiled in.
    pub fn of_this_checkout() -> Self {
        let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self {
            root: manifest_dir.parent().unwrap_or(manifest_dir).to_path_buf(),
        }
    }

    /// A checkout anywhere, for tests.
    #[cfg(test)]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The ignored folder that holds the versions of libtorch and what set-up needs beside them.
    pub fn libtorch_home(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// Where programs that run from this checkout look for libtorch at last; a link to the one in use.
    pub fn libtorch(&self) -> PathBuf {
        self.libtorch_home().join("torch")
    }

    /// `cargo`, the one that runs this xtask, in the root of the checkout.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        command
    }

    /// Builds the binaries with optimisation; cargo's progress goes to the terminal.
    pub fn build_release(&self) -> Result<()> {
        let status = self
            .cargo()
            .args(["build", "--release", "--package=tandem-cli"])
            .status()
            .context("cannot run `cargo build`")?;
        if !status.success() {
            bail!("`cargo build --release` failed ({status})");
        }
        Ok(())
    }

    /// Builds the binaries as the tests do, so that whichever comes second, the demo or the tests, finds them built.
    pub fn build_for_tests(&self) -> Result<()> {
        let status = self
            .cargo()
            .args(["build", "--package=tandem-cli", TESTED_FEATURES])
            .status()
            .context("cannot run `cargo build`")?;
        if !status.success() {
            bail!("`cargo build` failed ({status})");
        }
        Ok(())
    }

    /// The path of a binary that [`Self::build_for_tests`] has built.
    pub fn tested_binary(&self, name: &str) -> Result<PathBuf> {
        Ok(self.target_dir()?.join("debug").join(name))
    }

    /// The path of a binary that [`Self::build_release`] has built.
    pub fn release_binary(&self, name: &str) -> Result<PathBuf> {
        Ok(self.target_dir()?.join("release").join(name))
    }

    /// Where cargo puts what it builds; asked of cargo because the user's own configuration may move it.
    pub fn target_dir(&self) -> Result<PathBuf> {
        let output = self
            .cargo()
            .args(["metadata", "--no-deps", "--format-version=1"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run `cargo metadata`")?;
        if !output.status.success() {
            bail!("`cargo metadata` failed ({})", output.status);
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
            .context("`cargo metadata` printed something that is not JSON")?;
        let directory = metadata["target_directory"]
            .as_str()
            .context("`cargo metadata` names no target_directory")?;
        Ok(directory.into())
    }
}
