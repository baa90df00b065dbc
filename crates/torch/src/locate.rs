//! Where libtorch is: found by its files, without running Python.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::TorchError;
use crate::version::{OLDEST, Version};

/// What of the process's surroundings decides which libtorch is used. They are asked in this order; the first that has one
/// wins. What a variable names must be one; elsewhere a release that is too old is passed over.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `TANDEM_LIBTORCH` and `LIBTORCH`: the folder of a torch package, of an unpacked libtorch, or of `libtorch_cpu.so`.
    pub variables: Vec<(&'static str, PathBuf)>,
    /// This program: it may be installed beside a Python that has torch, or built in a checkout where `cargo xtask setup` ran.
    pub executable: Option<PathBuf>,
    /// Prefixes of active Python environments: `VIRTUAL_ENV`, `CONDA_PREFIX`, or that of the `python3` on the `PATH`.
    pub environments: Vec<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub fn read() -> Self {
        let path = |name| {
            let value: OsString = std::env::var_os(name)?;
            (!value.is_empty()).then(|| PathBuf::from(value))
        };
        let variables = ["TANDEM_LIBTORCH", "LIBTORCH"];
        let mut environments: Vec<_> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
            .into_iter()
            .filter_map(path)
            .collect();
        if environments.is_empty() {
            environments.extend(std::env::var_os("PATH").and_then(|path| python_prefix(&path)));
        }
        Self {
            variables: variables
                .into_iter()
                .filter_map(|name| Some((name, path(name)?)))
                .collect(),
            // Links are followed, so that a link to a program in a checkout leads to that checkout.
            executable: std::env::current_exe()
                .and_then(|program| program.canonicalize())
                .ok(),
            environments,
        }
    }
}

/// Where a libtorch comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An environment variable names it.
    Variable(&'static str),
    /// The torch package of the Python environment that this program is installed in.
    ProgramEnvironment,
    /// The torch package of the active Python environment.
    ActiveEnvironment,
    /// `cargo xtask setup` put it into the checkout.
    Setup,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "the variable {name}"),
            Self::ProgramEnvironment => f.write_str("the Python environment of this program"),
            Self::ActiveEnvironment => f.write_str("the active Python environment"),
            Self::Setup => f.write_str("cargo xtask setup"),
        }
    }
}

/// A libtorch that has not been loaded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The folder that has `libtorch_cpu.so`.
    pub libraries: PathBuf,
    /// Why this one.
    pub origin: Origin,
    /// What its files say; `None` where they say nothing.
    pub version: Option<Version>,
    /// What came before it and did not do, each a sentence.
    pub passed_over: Vec<String>,
}

/// The libtorch to use.
///
/// # Errors
/// [`TorchError::NotFound`], [`TorchError::NotALibtorch`] or [`TorchError::TooOld`].
pub fn find(surroundings: &Surroundings) -> Result<Found, TorchError> {
    if let Some((variable, folder)) = surroundings.variables.first() {
        let Some((libraries, version)) = inspect(folder) else {
            return Err(TorchError::NotALibtorch {
                variable,
                folder: folder.clone(),
            });
        };
        return match version {
            Some(version) if version < OLDEST => Err(TorchError::TooOld {
                folder: libraries,
                version,
            }),
            version => Ok(Found {
                libraries,
                origin: Origin::Variable(variable),
                version,
                passed_over: Vec::new(),
            }),
        };
    }
    let mut passed_over = Vec::new();
    for (folder, origin) in candidates(surroundings) {
        let Some((libraries, version)) = inspect(&folder) else {
            continue;
        };
        match version {
            Some(version) if version < OLDEST => passed_over.push(format!(
                "{} is {version}, which is too old",
                folder.display()
            )),
            version => {
                return Ok(Found {
                    libraries,
                    origin,
                    version,
                    passed_over,
                });
            }
        }
    }
    Err(TorchError::NotFound {
        looked_at: passed_over,
    })
}

/// Folders that may be a libtorch, in order.
fn candidates(surroundings: &Surroundings) -> Vec<(PathBuf, Origin)> {
    let mut folders = Vec::new();
    let program: Vec<&Path> = surroundings
        .executable
        .iter()
        .flat_map(|program| program.ancestors().skip(1))
        .collect();
    for folder in &program {
        let name = folder.file_name().unwrap_or_default();
        if name == "bin" {
            let prefix = folder.parent().unwrap_or(folder);
            folders.extend(packages(prefix).map(|torch| (torch, Origin::ProgramEnvironment)));
        } else if name == "site-packages" || name == "dist-packages" {
            folders.push((folder.join("torch"), Origin::ProgramEnvironment));
        }
    }
    for prefix in &surroundings.environments {
        folders.extend(packages(prefix).map(|torch| (torch, Origin::ActiveEnvironment)));
    }
    for folder in &program {
        folders.push((folder.join(".libtorch/torch"), Origin::Setup));
    }
    folders
}

/// Places of a torch package below the prefix of a Python environment, the newest Python first.
fn packages(prefix: &Path) -> impl Iterator<Item = PathBuf> {
    let mut pythons = Vec::new();
    for lib in ["lib", "lib64"] {
        let Ok(entries) = fs::read_dir(prefix.join(lib)) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let minor = name
                .to_str()
                .and_then(|name| name.strip_prefix("python3."))
                .and_then(|minor| minor.parse::<u32>().ok());
            if let Some(minor) = minor {
                pythons.push((minor, entry.path()));
            }
        }
    }
    pythons.sort_by_key(|(minor, _)| std::cmp::Reverse(*minor));
    pythons.into_iter().flat_map(|(_, python)| {
        ["site-packages", "dist-packages"].map(|packages| python.join(packages).join("torch"))
    })
}

/// The prefix of the first `python3` on the path that is a Python itself: scripts that choose one say nothing.
fn python_prefix(path: &OsString) -> Option<PathBuf> {
    std::env::split_paths(path).find_map(|folder| {
        let program = folder.join("python3").canonicalize().ok()?;
        let name = program.file_name()?.to_str()?;
        let is_python = name.starts_with("python3") && program.parent()?.ends_with("bin");
        let prefix = program.parent()?.parent()?;
        (is_python && prefix.join("lib").is_dir()).then(|| prefix.to_path_buf())
    })
}

/// The folder of the libraries, and the version that stands beside them; `None` where there is no libtorch.
fn inspect(folder: &Path) -> Option<(PathBuf, Option<Version>)> {
    let places = [
        folder.join("lib"),
        folder.to_path_buf(),
        folder.join("torch/lib"),
    ];
    let libraries = places
        .into_iter()
        .find(|place| place.join("libtorch_cpu.so").is_file())?;
    let version = libraries.parent().and_then(Version::of_folder);
    Some((libraries, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a torch package.
    fn package(folder: &Path, version: &str) {
        fs::create_dir_all(folder.join("lib")).expect("create");
        fs::write(folder.join("lib/libtorch_cpu.so"), "").expect("write");
        let text = format!("__version__ = '{version}'\n");
        fs::write(folder.join("version.py"), text).expect("write");
    }

    #[test]
    fn the_order_is_variable_program_active_environment_setup() {
        let root = tempfile::tempdir().expect("temporary directory");
        let at = |path: &str| root.path().join(path);
        let mut surroundings = Surroundings {
            executable: Some(at("checkout/target/release/train_fsdp")),
            ..Surroundings::default()
        };
        assert_eq!(
            find(&surroundings),
            Err(TorchError::NotFound {
                looked_at: Vec::new()
            })
        );

        package(&at("checkout/.libtorch/torch"), "2.15.0");
        let found = find(&surroundings).expect("found");
        assert_eq!(found.origin, Origin::Setup);
        assert_eq!(found.libraries, at("checkout/.libtorch/torch/lib"));

        // A release that is too old is passed over, and said.
        package(&at("old/lib/python3.11/site-packages/torch"), "2.9.1+cpu");
        package(
            &at("active/lib/python3.12/site-packages/torch"),
            "2.11.0+cu130",
        );
        surroundings.environments = vec![at("old"), at("active")];
        let found = find(&surroundings).expect("found");
        assert_eq!(found.origin, Origin::ActiveEnvironment);
        assert_eq!(found.version, Some(Version::new(2, 11, 0)));
        assert!(found.passed_over[0].contains("2.9.1"), "{found:?}");

        surroundings.executable = Some(at("venv/bin/train_fsdp"));
        package(&at("venv/lib/python3.9/site-packages/torch"), "2.10.0");
        package(&at("venv/lib/python3.10/site-packages/torch"), "2.14.0");
        let found = find(&surroundings).expect("found");
        assert_eq!(found.origin, Origin::ProgramEnvironment);
        assert_eq!(found.version, Some(Version::new(2, 14, 0)));

        package(&at("named"), "2.12.1");
        for named in ["named", "named/lib"] {
            surroundings.variables = vec![("LIBTORCH", at(named))];
            let found = find(&surroundings).expect("found");
            assert_eq!(found.origin, Origin::Variable("LIBTORCH"));
            assert_eq!(found.libraries, at("named/lib"));
        }
    }

    #[test]
    fn what_a_variable_names_must_be_a_libtorch_that_is_new_enough() {
        let root = tempfile::tempdir().expect("temporary directory");
        let mut surroundings = Surroundings {
            variables: vec![("TANDEM_LIBTORCH", root.path().join("nothing"))],
            ..Surroundings::default()
        };
        let error = find(&surroundings).expect_err("nothing is there");
        let text = error.to_string();
        assert!(
            text.contains("TANDEM_LIBTORCH") && text.contains("nothing"),
            "{text}"
        );

        package(&root.path().join("old"), "2.9.1");
        surroundings.variables = vec![("TANDEM_LIBTORCH", root.path().join("old"))];
        let error = find(&surroundings).expect_err("too old");
        let text = error.to_string();
        assert!(text.contains("2.9.1") && text.contains("2.10"), "{text}");
    }

    #[test]
    fn the_prefix_of_a_python_on_the_path_is_where_its_link_leads() {
        let root = tempfile::tempdir().expect("temporary directory");
        let root = root.path().canonicalize().expect("exists");
        let (real, links) = (root.join("opt/py/bin"), root.join("links"));
        fs::create_dir_all(&real).expect("create");
        fs::create_dir_all(root.join("opt/py/lib")).expect("create");
        fs::create_dir_all(&links).expect("create");
        fs::write(real.join("python3.12"), "").expect("write");
        std::os::unix::fs::symlink(real.join("python3.12"), links.join("python3")).expect("link");
        let path = std::env::join_paths([root.join("none"), links]).expect("a path");
        assert_eq!(python_prefix(&path), Some(root.join("opt/py")));
    }
}
