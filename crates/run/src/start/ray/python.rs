//! The Python that speaks to Ray: where it is, and whether it has what it needs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::environment::{Environment, PYTHON};
use crate::failure::{Failure, Outcome};

/// The module that runs a request.
pub const DRIVER: &str = "tandem_ray.driver";

/// Prints what is missing. Packages are looked for without importing them, which would take seconds.
const PROBE: &str = "\
import importlib.metadata, importlib.util, sys
lacks = [name for name in ('tandem_ray', 'ray', 'pyarrow', 'fsspec') if importlib.util.find_spec(name) is None]
version = '' if 'ray' in lacks else importlib.metadata.version('ray')
if sys.version_info < (3, 10): print('old Python', sys.version.split()[0])
elif lacks: print('lacks', ' '.join(lacks))
elif [int(part) for part in version.split('.')[:2]] < [2, 60]: print('old Ray', version)
else: print('good')
";

/// A Python that has Ray and the package `tandem_ray`.
pub struct Python {
    /// Its executable.
    pub program: PathBuf,
}

impl Python {
    /// Finds it and looks into it.
    pub fn find(environment: &Environment) -> Outcome<Self> {
        let program = locate(
            environment.python.clone(),
            std::env::current_exe().ok(),
            environment.path.clone(),
        )
        .ok_or_else(|| {
            Failure::usage(format!(
                "--cluster ray needs Python 3.10 or newer with Ray, and there is no python3 beside this program or on PATH; \
                 install Python and then `pip install '.[ray]'` in Tandem's checkout, or name another Python in {PYTHON}"
            ))
        })?;
        probe(&program)?;
        Ok(Self { program })
    }

    /// `program`, unless Ray's workers find it by its name: where TANDEM_BIN_DIR says, or as pip installs it, beside Python.
    pub fn needs_path_of<'a>(
        &self,
        program: &'a Path,
        environment: &Environment,
    ) -> Option<&'a Path> {
        let same = |folder: Option<&Path>| {
            let beside = folder?.join(program.file_name()?).canonicalize().ok()?;
            Some(beside == program.canonicalize().ok()?)
        };
        let installed = same(self.program.parent()).unwrap_or(false);
        (!environment.has_bin_dir && !installed).then_some(program)
    }
}

/// The Python that was named, the one beside this program (a virtual environment that nobody activated), or PATH's.
fn locate(
    named: Option<PathBuf>,
    own: Option<PathBuf>,
    path: Option<std::ffi::OsString>,
) -> Option<PathBuf> {
    if named.is_some() {
        return named;
    }
    let folders = own
        .iter()
        .filter_map(|own| own.parent())
        .map(Path::to_owned)
        .chain(path.iter().flat_map(std::env::split_paths));
    folders
        .map(|folder| folder.join("python3"))
        .find(|python| python.is_file())
}

fn probe(program: &Path) -> Outcome<()> {
    let shown = program.display();
    let output = Command::new(program)
        .args(["-c", PROBE])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            Failure::usage(format!(
                "--cluster ray needs Python, and {shown} cannot be run: {error}; name another one in {PYTHON}"
            ))
        })?;
    let install = format!("run `{shown} -m pip install '.[ray]'` in Tandem's checkout");
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().split_once(' ') {
        None if said.trim() == "good" => Ok(()),
        Some(("lacks", packages)) => Err(Failure::usage(format!(
            "--cluster ray needs Ray Train and the package tandem_ray, but {shown} lacks {}; {install}, or name another \
             Python in {PYTHON}",
            packages.replace(' ', ", ")
        ))),
        Some(("old", what)) => Err(Failure::usage(format!(
            "--cluster ray needs Python 3.10 and Ray 2.60 or newer, but {shown} is, or has, {what}; {install}, or name \
             another Python in {PYTHON}"
        ))),
        _ => Err(Failure::usage(format!(
            "--cluster ray needs Python, and {shown} does not run as one does: {} {}",
            said.trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A stand-in for Python that prints `said`.
    fn python(folder: &Path, said: &str) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join("python3");
        std::fs::write(&path, format!("#!/bin/sh\necho '{said}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_named_python_comes_first_then_the_one_beside_this_program_then_paths() {
        let folder = tempfile::tempdir().unwrap();
        let beside = python(&folder.path().join("venv"), "good");
        let on_path = python(&folder.path().join("path"), "good");
        let path: Option<std::ffi::OsString> = Some(on_path.parent().unwrap().into());
        let own = beside.with_file_name("train_fsdp");
        let elsewhere = folder.path().join("train_fsdp");
        let named = Some(PathBuf::from("/named"));
        let find = |named: &Option<PathBuf>, own: &PathBuf, path: &Option<_>| {
            locate(named.clone(), Some(own.clone()), path.clone())
        };
        assert_eq!(find(&named, &own, &None), named);
        assert_eq!(find(&None, &own, &path), Some(beside.clone()));
        assert_eq!(find(&None, &elsewhere, &path), Some(on_path));
        assert_eq!(find(&None, &elsewhere, &None), None);
        std::fs::write(&own, "").unwrap();
        let python = Python { program: beside };
        let mut environment = Environment::read();
        environment.has_bin_dir = false;
        assert_eq!(python.needs_path_of(&own, &environment), None);
        assert_eq!(
            python.needs_path_of(&elsewhere, &environment),
            Some(elsewhere.as_path())
        );
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_install() {
        let folder = tempfile::tempdir().unwrap();
        assert!(probe(&python(folder.path(), "good")).is_ok());
        for (said, words) in [
            ("lacks tandem_ray ray", "lacks tandem_ray, ray; run `"),
            ("old Ray 2.51.0", "Ray 2.51.0"),
            ("old Python 3.8.1", "Python 3.8.1"),
            ("hello", "does not run as one does: hello"),
        ] {
            let failure = probe(&python(folder.path(), said)).unwrap_err();
            assert_eq!(failure.exit_code, 2);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
        let failure = probe(Path::new("/no/python3")).unwrap_err();
        assert!(failure.message.contains(PYTHON), "{}", failure.message);
        // The real thing, on whatever Python this machine has.
        let path = std::env::var_os("PATH");
        if let Err(failure) = probe(&locate(None, None, path).expect("a python3")) {
            assert!(
                failure.message.contains("pip install '.[ray]'"),
                "{}",
                failure.message
            );
        }
    }
}
