//! The Python that is installed: which version it is, whether it has torch, whether it has pip.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// Prints Python's version, then the version and directory of its torch if it has one. torch is located but not
/// imported: importing takes seconds and fails where a driver is missing.
const INSPECT: &str = r#"
import sys
print("%d.%d" % sys.version_info[:2])
import importlib.util, importlib.metadata, os
spec = importlib.util.find_spec("torch")
if spec is not None and spec.origin:
    print(importlib.metadata.version("torch"))
    print(os.path.dirname(os.path.realpath(spec.origin)))
"#;

/// A Python 3 that runs.
#[derive(Debug)]
pub struct Python {
    command: PathBuf,
    /// Major and minor version.
    pub version: (u32, u32),
    torch: Option<PythonTorch>,
}

/// The torch package of a Python.
#[derive(Debug)]
pub struct PythonTorch {
    /// As the package states it, for example `2.13.0+cu130`.
    pub version: String,
    /// The package directory, which is laid out as a libtorch: `lib`, and `version.py`.
    pub directory: PathBuf,
}

impl Python {
    /// The first of `commands` that runs and is Python 3.
    pub fn find(commands: &[PathBuf]) -> Option<Self> {
        commands.iter().find_map(|command| Self::inspect(command))
    }

    /// Its torch package, if it has one.
    pub fn into_torch(self) -> Option<PythonTorch> {
        self.torch
    }

    /// `python -m pip`, not in the user's directory, where a file named like a module could be imported instead.
    pub fn pip(&self) -> Command {
        let mut command = self.in_root();
        command.args(["-m", "pip", "--disable-pip-version-check", "--no-input"]);
        command
    }

    /// Errors with what to install unless this Python can run pip.
    pub fn require_pip(&self) -> Result<()> {
        let works = self
            .pip()
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !works {
            bail!(
                "{} {}.{} has no pip, which set-up needs to fetch libtorch. Install it (on Debian and Ubuntu: apt \
                 install python3-pip; elsewhere: python3 -m ensurepip), or set LIBTORCH to the folder of a libtorch",
                self.command.display(),
                self.version.0,
                self.version.1
            );
        }
        Ok(())
    }

    fn inspect(command: &Path) -> Option<Self> {
        let mut python = Self {
            command: command.to_path_buf(),
            version: (0, 0),
            torch: None,
        };
        let output = python
            .in_root()
            .args(["-c", INSPECT])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines = text.lines();
        let (major, minor) = lines.next()?.split_once('.')?;
        python.version = (major.parse().ok()?, minor.parse().ok()?);
        if python.version.0 != 3 {
            return None;
        }
        if let (Some(version), Some(directory)) = (lines.next(), lines.next()) {
            python.torch = Some(PythonTorch {
                version: version.to_owned(),
                directory: directory.into(),
            });
        }
        Some(python)
    }

    fn in_root(&self) -> Command {
        let mut command = Command::new(&self.command);
        command.current_dir("/");
        command
    }
}
