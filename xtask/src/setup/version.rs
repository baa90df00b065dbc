//! The one torch version this workspace is built for, and how to tell the version of a libtorch without running it.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

/// tch is generated from the headers of exactly this version: any other may not even link.
pub const TORCH_VERSION: &str = "2.13.0";

/// Errors unless `libtorch` holds headers and libraries of [`TORCH_VERSION`].
pub fn require(libtorch: &Path) -> Result<()> {
    let shown = libtorch.display();
    for needed in [
        "include/torch/csrc/api/include/torch/torch.h",
        "lib/libtorch_cpu.so",
        "lib/libtorch.so",
        "lib/libc10.so",
    ] {
        if !libtorch.join(needed).exists() {
            bail!("{shown} lacks {needed}, so it is not a complete libtorch");
        }
    }
    match of(libtorch) {
        None => bail!("{shown} does not say which version of libtorch it is"),
        Some(version) if number(&version) == TORCH_VERSION => Ok(()),
        Some(version) => bail!(
            "{shown} is libtorch {version}, and Tandem needs {TORCH_VERSION}. Install torch=={TORCH_VERSION}, or unset \
             LIBTORCH to let `cargo xtask setup` fetch it"
        ),
    }
}

/// `2.13.0` of `2.13.0+cu130`.
pub fn number(version: &str) -> &str {
    version
        .split_once('+')
        .map_or(version, |(number, _)| number)
}

/// The version that a libtorch directory states, in any of the ways its distributions do.
fn of(libtorch: &Path) -> Option<String> {
    let read = |path: &str| fs::read_to_string(libtorch.join(path)).ok();
    // The libtorch archives have `build-version`, Python packages `version.py`; headers are everywhere.
    read("build-version")
        .map(|text| text.trim().to_owned())
        .or_else(|| python_version(&read("version.py")?))
        .or_else(|| header_version(&read("include/torch/headeronly/version.h")?))
        .or_else(|| header_version(&read("include/torch/csrc/api/include/torch/version.h")?))
}

fn python_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    Some(line.split('\'').nth(1)?.to_owned())
}

fn header_version(text: &str) -> Option<String> {
    let field = |name: &str| {
        let prefix = format!("#define TORCH_VERSION_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
        Some(line.trim().to_owned())
    };
    Some(format!(
        "{}.{}.{}",
        field("MAJOR")?,
        field("MINOR")?,
        field("PATCH")?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_state_a_version_is_read() {
        let python = "from typing import Optional\n__all__ = ['__version__']\n__version__ = '2.13.0+cu130'\n";
        assert_eq!(python_version(python).as_deref(), Some("2.13.0+cu130"));
        assert_eq!(number("2.13.0+cu130"), "2.13.0");
        assert_eq!(number("2.13.0"), "2.13.0");
        let header = "#define TORCH_VERSION_MAJOR 2\n\n#define TORCH_VERSION_MINOR 9\n#define TORCH_VERSION_PATCH 1\n";
        assert_eq!(header_version(header).as_deref(), Some("2.9.1"));
        assert_eq!(header_version("#define OTHER 1"), None);
    }
}
