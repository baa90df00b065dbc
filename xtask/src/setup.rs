//! Makes a libtorch available to everything that runs from this checkout.
//!
//! Building needs none. Programs look for one when they start: first where `TANDEM_LIBTORCH` or `LIBTORCH` points, and
//! in a checkout at last in `.libtorch/torch`. Set-up puts something there: a link to the libtorch that the environment
//! names, a link to a Python torch that serves, or a link to `.libtorch/<version>`, the CPU part of the torch wheels,
//! fetched with pip and unpacked without installing anything. Several versions may stay side by side.
//!
//! Whatever is cut off half-way heals on the next run: new content is prepared under another name and renamed into
//! place, and what is in place is checked against the manifest that came with it.

mod install;
mod loading;
mod manifest;
mod python;
pub mod releases;
mod version;
mod wheels;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::install::Found;
use self::python::Python;
use self::releases::{NEWEST, Release};
use crate::workspace::Workspace;

/// The variables in which a user names a libtorch, in the order in which programs read them.
const VARIABLES: [&str; 2] = ["TANDEM_LIBTORCH", "LIBTORCH"];

/// What to set up.
#[derive(Debug, Default, PartialEq)]
pub struct Request {
    /// Choose again even when a working libtorch is in place.
    pub force: bool,
    /// The release to fetch and use, whatever else there is.
    pub release: Option<&'static Release>,
}

/// A libtorch that loads on this machine.
#[derive(Debug)]
pub struct Libtorch {
    pub directory: PathBuf,
    /// As it states it, for example `2.13.0+cu130`.
    pub version: String,
    /// A few words on where it came from.
    origin: String,
}

impl Libtorch {
    /// The version without what follows its number: `2.13.0`.
    pub fn number(&self) -> &str {
        version::number(&self.version)
    }

    /// Makes the programs that `command` starts use this libtorch, whatever else they would find.
    pub fn give_to(&self, command: &mut Command) {
        command.env(VARIABLES[0], &self.directory);
    }
}

/// What set-up reads from its surroundings, read once.
#[derive(Debug)]
pub struct Surroundings {
    /// The libtorch that the user names, and the variable that does.
    pub libtorch: Option<(&'static str, PathBuf)>,
    /// The Python commands to try, in order.
    pub pythons: Vec<PathBuf>,
}

impl Surroundings {
    fn from_environment(workspace: &Workspace) -> Self {
        let named = |variable| {
            let path = std::env::var_os(variable).filter(|path| !path.is_empty())?;
            // Absolute, because tests and workers run in other folders.
            Some((variable, std::path::absolute(path).ok()?))
        };
        // In a virtual environment `python` is that environment's; elsewhere it may be missing or Python 2.
        let pythons = match std::env::var_os("VIRTUAL_ENV") {
            Some(_) => ["python", "python3"],
            None => ["python3", "python"],
        };
        Self {
            libtorch: VARIABLES
                .into_iter()
                .find_map(named)
                // What set-up manages is not a user's own.
                .filter(|(_, path)| *path != workspace.libtorch()),
            pythons: pythons.map(PathBuf::from).to_vec(),
        }
    }
}

/// Makes libtorch available, fetching it only where nothing else serves, and says what is there now.
pub fn run(workspace: &Workspace, request: &Request) -> Result<Libtorch> {
    let surroundings = Surroundings::from_environment(workspace);
    let libtorch = provide(workspace, &surroundings, request)?;
    println!(
        "libtorch {}: {} ({})",
        libtorch.version,
        libtorch.directory.display(),
        libtorch.origin
    );
    if let Some(remark) = releases::remark(&libtorch.version) {
        println!("{remark}");
    }
    if let (Some(_), Some((variable, path))) = (request.release, &surroundings.libtorch) {
        println!(
            "{variable} is set to {}, and goes before it: unset it to use {}",
            path.display(),
            libtorch.version
        );
    }
    Ok(libtorch)
}

/// Fetches a release where it is not there yet; which libtorch is in use stays as it is.
pub fn fetch_beside(workspace: &Workspace, release: &'static Release) -> Result<Libtorch> {
    let surroundings = Surroundings::from_environment(workspace);
    let _lock = lock(workspace)?;
    let libtorch = fetched(workspace, &surroundings, release)?;
    loading::check(&libtorch.directory)?;
    remove_leftovers(workspace)?;
    Ok(libtorch)
}

/// Does the work of [`run`] in the given surroundings.
fn provide(
    workspace: &Workspace,
    surroundings: &Surroundings,
    request: &Request,
) -> Result<Libtorch> {
    let _lock = lock(workspace)?;
    let Choice { libtorch, link } = choose(workspace, surroundings, request)?;
    // Before the link is changed: what is there now may work.
    loading::check(&libtorch.directory)?;
    if let Some(target) = link {
        install::link(&workspace.libtorch(), &target)?;
    }
    remove_leftovers(workspace)?;
    Ok(libtorch)
}

/// Waits for a set-up that is running: two at once would fetch twice and rename over each other. The second then finds
/// all done. The lock ends with the returned file.
fn lock(workspace: &Workspace) -> Result<fs::File> {
    let home = workspace.libtorch_home();
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let lock = fs::File::create(home.join("lock"))
        .with_context(|| format!("cannot write in {}", home.display()))?;
    lock.lock()
        .context("cannot lock .libtorch/lock against a second set-up")?;
    Ok(lock)
}

/// What is to be used, and what `.libtorch/torch` must become a link to for that; `None` leaves it as it is.
struct Choice {
    libtorch: Libtorch,
    link: Option<PathBuf>,
}

/// Finds or fetches a libtorch.
fn choose(workspace: &Workspace, surroundings: &Surroundings, request: &Request) -> Result<Choice> {
    if let Some(release) = request.release {
        return choose_fetched(workspace, surroundings, release);
    }
    let place = workspace.libtorch();
    let in_place = install::inspect(&place);

    if let Some((variable, given)) = &surroundings.libtorch {
        let version = version::require(given)
            .with_context(|| format!("{variable} names a libtorch that does not serve"))?;
        let libtorch = Libtorch {
            directory: given.clone(),
            version,
            origin: format!("from the environment variable {variable}"),
        };
        // Commands run later without the variable find it too, unless there is one for them already.
        let link = match in_place {
            Found::Working { .. } => None,
            _ => Some(resolved(&version::root(given))?),
        };
        return Ok(Choice { libtorch, link });
    }

    match in_place {
        Found::Working { version, origin } if !request.force => {
            let libtorch = Libtorch {
                directory: place,
                version,
                origin,
            };
            return Ok(Choice {
                libtorch,
                link: None,
            });
        }
        Found::Working { .. } | Found::Nothing => {}
        Found::Damaged(why) => {
            println!("{}: {why}; replacing it", place.display());
            // The version that was chosen is healed; it stays chosen.
            if let Some(release) = install::chosen(&place).filter(|_| !request.force) {
                return choose_fetched(workspace, surroundings, release);
            }
        }
    }

    if let Some(torch) = Python::find(&surroundings.pythons).and_then(Python::into_torch) {
        match version::require(&torch.directory) {
            Ok(version) => {
                let libtorch = Libtorch {
                    origin: format!("Python's torch, in {}", torch.directory.display()),
                    directory: torch.directory.clone(),
                    version,
                };
                let link = Some(resolved(&torch.directory)?);
                return Ok(Choice { libtorch, link });
            }
            Err(why) => println!(
                "leaving Python's torch {} alone and fetching a CPU build: {why:#}",
                torch.version
            ),
        }
    }
    choose_fetched(workspace, surroundings, NEWEST)
}

/// The choice of a release that set-up fetches, or has fetched before.
fn choose_fetched(
    workspace: &Workspace,
    surroundings: &Surroundings,
    release: &'static Release,
) -> Result<Choice> {
    Ok(Choice {
        libtorch: fetched(workspace, surroundings, release)?,
        // Relative, so that a checkout can be moved.
        link: Some(release.version.into()),
    })
}

/// The release in `.libtorch/<version>`; fetches it unless it is there and whole.
fn fetched(
    workspace: &Workspace,
    surroundings: &Surroundings,
    release: &'static Release,
) -> Result<Libtorch> {
    let directory = workspace.libtorch_home().join(release.version);
    let libtorch = |version, origin| Libtorch {
        directory: directory.clone(),
        version,
        origin,
    };
    match install::inspect_fetched(&directory, release) {
        Found::Working { version, origin } => return Ok(libtorch(version, origin)),
        Found::Nothing => {}
        Found::Damaged(why) => println!("{}: {why}; replacing it", directory.display()),
    }
    let Some(python) = Python::find(&surroundings.pythons) else {
        bail!(
            "libtorch {} is not there, and no Python 3 to fetch it with. Install python3 and pip, or set LIBTORCH to the \
             folder of a libtorch",
            release.version
        );
    };
    fetch(workspace, &python, release, &directory)?;
    Ok(libtorch(
        version::require(&directory)?,
        "CPU build, fetched with pip".into(),
    ))
}

/// Downloads and unpacks the wheels, then renames the result to `directory`.
fn fetch(
    workspace: &Workspace,
    python: &Python,
    release: &Release,
    directory: &Path,
) -> Result<()> {
    let home = workspace.libtorch_home();
    let partial = home.join("partial");
    remove(&partial)?; // left by a run that was cut off
    let unpacked = partial.join(release.version);
    fs::create_dir_all(&unpacked)
        .with_context(|| format!("cannot create {}", unpacked.display()))?;

    let downloads = home.join("wheels");
    let wheels = wheels::download(release, python, &downloads, &partial.join("tmp"))?;
    wheels::unpack(release, &wheels, &unpacked)?;
    install::put(directory, &unpacked, &partial.join("replaced"))
}

/// Removes what a fetch leaves, or left when it was cut off; after a failure it is kept, for the next run to go on from.
fn remove_leftovers(workspace: &Workspace) -> Result<()> {
    let home = workspace.libtorch_home();
    remove(&home.join("wheels"))?;
    remove(&home.join("partial"))
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

/// The path without links in it.
fn resolved(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("cannot resolve {}", path.display()))
}

#[cfg(test)]
mod tests;
