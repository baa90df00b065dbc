//! What is at `.libtorch/torch` and beside it now, and the ways to put something else there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::releases::{RELEASES, Release};
use super::{manifest, version};

/// What was found in place.
#[derive(Debug)]
pub enum Found {
    Nothing,
    /// Complete and of a version that serves.
    Working {
        version: String,
        /// A few words on where it came from.
        origin: String,
    },
    /// Something is there that cannot be used; why.
    Damaged(String),
}

/// Looks at `place` without changing it.
pub fn inspect(place: &Path) -> Found {
    if fs::symlink_metadata(place).is_err() {
        return Found::Nothing;
    }
    let managed = manifest::exists(place);
    let check = || {
        let version = version::require(place)?;
        if managed {
            manifest::verify(place)?;
        }
        Ok::<_, anyhow::Error>(version)
    };
    match check() {
        Err(error) => Found::Damaged(format!("{error:#}")),
        Ok(version) => Found::Working {
            version,
            origin: match fs::read_link(place) {
                _ if managed => "CPU build, fetched earlier, all files verified".into(),
                Ok(target) => format!("a link to {}", target.display()),
                Err(_) => "put there by hand".into(),
            },
        },
    }
}

/// As [`inspect`], for a folder that only set-up writes: it must be whole and of `release`.
pub fn inspect_fetched(folder: &Path, release: &Release) -> Found {
    let check = |stated: &str| {
        if version::number(stated) != release.version {
            bail!("it states the version {stated}");
        }
        if !manifest::exists(folder) {
            bail!("its manifest is missing");
        }
        Ok(())
    };
    match inspect(folder) {
        Found::Working { version, origin } => match check(&version) {
            Ok(()) => Found::Working { version, origin },
            Err(error) => Found::Damaged(format!("{error:#}")),
        },
        other => other,
    }
}

/// The release that the link `place` chooses, whether or not it is whole.
pub fn chosen(place: &Path) -> Option<&'static Release> {
    let target = fs::read_link(place).ok()?;
    RELEASES
        .iter()
        .find(|release| Path::new(release.version) == target)
}

/// Makes `place` a link to the libtorch in `target`; a relative path starts in the folder of `place`. Where there is a
/// link already it is replaced in one step: who opens a file below `place` finds the old libtorch or the new one.
pub fn link(place: &Path, target: &Path) -> Result<()> {
    let home = place.parent().unwrap_or(place);
    let new = home.join("new-link");
    let _ = fs::remove_file(&new); // left by a run that was cut off
    symlink(target, &new).with_context(|| format!("cannot make a link in {}", home.display()))?;
    match fs::symlink_metadata(place) {
        Ok(metadata) if metadata.is_dir() => put(place, &new, &home.join("replaced")),
        _ => fs::rename(&new, place)
            .with_context(|| format!("cannot rename {} to {}", new.display(), place.display())),
    }
}

/// Renames `new` to `place`. What was there is moved to `aside` first and removed last, so that `place` is missing
/// only for an instant and never half there.
pub fn put(place: &Path, new: &Path, aside: &Path) -> Result<()> {
    remove_any(aside)?;
    if fs::symlink_metadata(place).is_ok() {
        fs::rename(place, aside)
            .with_context(|| format!("cannot move {} aside", place.display()))?;
    }
    fs::rename(new, place)
        .with_context(|| format!("cannot rename {} to {}", new.display(), place.display()))?;
    remove_any(aside)
}

/// Removes a link, a file or a directory tree; a link's target stays.
fn remove_any(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}
