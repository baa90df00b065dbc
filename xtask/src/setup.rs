//! Makes libtorch available to every cargo command in this checkout.
//!
//! `.cargo/config.toml` sets `LIBTORCH` to `.libtorch/torch`, so that plain `cargo build` works; set-up puts something
//! there: a link to the libtorch that `$LIBTORCH` names, a link to a Python torch of the right version, or the CPU
//! part of the torch wheels, fetched with pip and unpacked without installing anything.
//!
//! Whatever is cut off half-way heals on the next run: new content is prepared under another name and renamed into
//! place, and what is in place is checked against the manifest that came with it.

mod install;
mod manifest;
mod python;
mod toolchain;
mod version;
mod wheels;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::install::Found;
use self::python::Python;
use self::toolchain::Toolchain;
use self::version::TORCH_VERSION;
use crate::workspace::Workspace;

/// What set-up reads from its surroundings, read once.
#[derive(Debug)]
pub struct Surroundings {
    /// `$LIBTORCH`, unless it is merely what `.cargo/config.toml` sets.
    pub libtorch: Option<PathBuf>,
    /// The Python commands to try, in order.
    pub pythons: Vec<PathBuf>,
    /// The C++ compiler that torch-sys will use.
    pub compiler: PathBuf,
}

impl Surroundings {
    fn from_environment(workspace: &Workspace) -> Self {
        let libtorch = std::env::var_os("LIBTORCH")
            .map(PathBuf::from)
            .filter(|path| !path.as_os_str().is_empty() && *path != workspace.libtorch());
        // In a virtual environment `python` is that environment's; elsewhere it may be missing or Python 2.
        let pythons = match std::env::var_os("VIRTUAL_ENV") {
            Some(_) => ["python", "python3"],
            None => ["python3", "python"],
        };
        Self {
            libtorch,
            pythons: pythons.map(PathBuf::from).to_vec(),
            // The same choice as the `cc` crate makes for torch-sys.
            compiler: std::env::var_os("CXX").map_or_else(|| "c++".into(), PathBuf::from),
        }
    }
}

/// Makes libtorch available, fetching it only where nothing else serves. `force` chooses again even when a working
/// libtorch is in place.
pub fn run(workspace: &Workspace, force: bool) -> Result<()> {
    let surroundings = Surroundings::from_environment(workspace);
    let message = provide(workspace, &surroundings, force)?;
    println!("{message}");
    Ok(())
}

/// Does the work of [`run`] in the given surroundings and returns one line on what is there now.
fn provide(workspace: &Workspace, surroundings: &Surroundings, force: bool) -> Result<String> {
    let home = workspace.libtorch_home();
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    // Two set-ups at once would fetch twice and rename over each other: the second waits, then finds all done.
    let lock = fs::File::create(home.join("lock"))
        .with_context(|| format!("cannot write in {}", home.display()))?;
    lock.lock()
        .context("cannot lock .libtorch/lock against a second set-up")?;

    let toolchain = Toolchain::probe(&surroundings.compiler, &home)?;
    let (libtorch, origin) = choose(workspace, surroundings, force)?;
    toolchain.check_loads(&libtorch)?;
    // What a fetch leaves, or left when it was cut off; kept after a failure, for the next run to go on from.
    remove(&home.join("wheels"))?;
    remove(&home.join("partial"))?;
    Ok(format!(
        "libtorch {TORCH_VERSION}: {} ({origin})",
        libtorch.display()
    ))
}

/// Finds or fetches libtorch; returns its directory and a few words on where it came from.
fn choose(
    workspace: &Workspace,
    surroundings: &Surroundings,
    force: bool,
) -> Result<(PathBuf, String)> {
    let place = workspace.libtorch();
    let in_place = install::inspect(&place);

    if let Some(given) = &surroundings.libtorch {
        version::require(given).context("LIBTORCH names a libtorch that does not serve")?;
        // Commands run later without LIBTORCH in their environment find it too, unless there is one for them already.
        if !matches!(in_place, Found::Working(_)) {
            install::link(&place, given)?;
        }
        return Ok((
            given.clone(),
            "from the environment variable LIBTORCH".into(),
        ));
    }

    match in_place {
        Found::Working(origin) if !force => return Ok((place, origin)),
        Found::Working(_) | Found::Nothing => {}
        Found::Damaged(why) => println!("{}: {why}; replacing it", place.display()),
    }

    let python = Python::find(&surroundings.pythons);
    if let Some(torch) = python.as_ref().and_then(Python::torch) {
        if torch.version_number() == TORCH_VERSION {
            version::require(&torch.directory)?;
            install::link(&place, &torch.directory)?;
            let origin = format!("Python's torch, in {}", torch.directory.display());
            return Ok((place, origin));
        }
        println!(
            "Python's torch is {}, and Tandem needs {TORCH_VERSION}: leaving it alone and fetching a CPU build",
            torch.version
        );
    }

    let Some(python) = python else {
        bail!(
            "there is no libtorch {TORCH_VERSION} here, and no Python 3 to fetch it with. Install python3 and pip, or \
             set LIBTORCH to the directory of a libtorch {TORCH_VERSION}"
        );
    };
    fetch(workspace, &python)?;
    Ok((place, "CPU build, fetched with pip".into()))
}

/// Downloads and unpacks the wheels, then renames the result into place.
fn fetch(workspace: &Workspace, python: &Python) -> Result<()> {
    let home = workspace.libtorch_home();
    let partial = home.join("partial");
    remove(&partial)?; // left by a run that was cut off
    let unpacked = partial.join("torch");
    fs::create_dir_all(&unpacked)
        .with_context(|| format!("cannot create {}", unpacked.display()))?;

    let downloads = home.join("wheels");
    let wheels = wheels::download(python, &downloads, &partial.join("tmp"))?;
    wheels::unpack(&wheels, &unpacked)?;
    install::put(&workspace.libtorch(), &unpacked, &partial.join("replaced"))
}

/// Removes a directory with all it holds; nothing there is fine.
fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
