//! Which versions of libtorch serve, and how to tell the version of one without running it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Major and minor version.
pub type Minor = (u32, u32);

/// The first version whose C ABI has all that Tandem calls.
pub const OLDEST: Minor = (2, 10);

/// Checks that `libtorch` is a folder of libraries of a version that serves; returns the version that it states.
///
/// # Errors
/// If libraries are missing, or if the version is too old or cannot be told.
pub fn require(libtorch: &Path) -> Result<String> {
    let shown = libtorch.display();
    let Some(libraries) = libraries(libtorch) else {
        bail!("{shown} lacks lib/libtorch_cpu.so, so it is not a complete libtorch");
    };
    if !libraries.join("libc10.so").exists() {
        bail!(
            "{} lacks libc10.so, so it is not a complete libtorch",
            libraries.display()
        );
    }
    let stated = of(libtorch).or_else(|| of(libraries.parent()?));
    let Some((version, minor)) = stated.and_then(|version| {
        let minor = minor(&version)?;
        Some((version, minor))
    }) else {
        bail!("{shown} does not say which version of libtorch it is");
    };
    if minor < OLDEST {
        bail!(
            "{shown} is libtorch {version}, and Tandem needs {} or newer",
            self::shown(OLDEST)
        );
    }
    Ok(version)
}

/// The folder with `libtorch_cpu.so` of a libtorch: `lib` in it, as all its distributions have it, or the folder itself.
pub fn libraries(libtorch: &Path) -> Option<PathBuf> {
    [libtorch.join("lib"), libtorch.to_path_buf()]
        .into_iter()
        .find(|folder| folder.join("libtorch_cpu.so").exists())
}

/// The folder that holds `lib`, where `libtorch` is that `lib`; otherwise `libtorch`.
pub fn root(libtorch: &Path) -> PathBuf {
    match libraries(libtorch) {
        Some(libraries) if libraries.ends_with("lib") => libraries
            .parent()
            .map_or_else(|| libtorch.to_path_buf(), Path::to_path_buf),
        _ => libtorch.to_path_buf(),
    }
}

/// `(2, 13)` of `2.13.0+cu130`.
pub fn minor(version: &str) -> Option<Minor> {
    let mut parts = version.split(['.', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// `2.13` of `(2, 13)`.
pub fn shown((major, minor): Minor) -> String {
    format!("{major}.{minor}")
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
    // The libtorch archives have `build-version`, Python packages `version.py`; where there are headers, they say it too.
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

    #[test]
    fn versions_are_ordered_by_number_and_not_by_text() {
        for serving in [
            "2.10.0",
            "2.13.0+cu130",
            "2.16.0a0+git1234567",
            "3.0.0.dev20270101",
            "10.0",
        ] {
            assert!(minor(serving) >= Some(OLDEST), "{serving}");
        }
        for refused in ["2.9.1", "1.13.0", "2.1.0+cpu", "2", "", "unknown"] {
            assert!(minor(refused) < Some(OLDEST), "{refused}");
        }
    }

    #[test]
    fn the_folder_of_the_libraries_itself_serves_too() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let libtorch = directory.path();
        let lib = libtorch.join("lib");
        fs::create_dir(&lib).expect("create");
        for library in ["libtorch_cpu.so", "libc10.so"] {
            fs::write(lib.join(library), "").expect("write");
        }
        let error = require(libtorch).expect_err("no version").to_string();
        assert!(error.contains("does not say which version"), "{error}");
        fs::write(libtorch.join("version.py"), "__version__ = '2.11.0+cpu'\n").expect("write");
        for folder in [libtorch, &lib] {
            assert_eq!(require(folder).expect("serves"), "2.11.0+cpu");
            assert_eq!(libraries(folder).as_deref(), Some(&*lib));
            assert_eq!(root(folder), libtorch);
        }
        fs::remove_file(lib.join("libc10.so")).expect("remove");
        let error = require(libtorch).expect_err("incomplete").to_string();
        assert!(error.contains("libc10.so"), "{error}");
    }
}
