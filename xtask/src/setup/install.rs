//! What is at `.libtorch/torch` now, and the two ways to put something else there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use super::{manifest, version};

/// What [`inspect`] found in place.
#[derive(Debug)]
pub enum Found {
    Nothing,
    /// Complete and of the right version; a few words on where it came from.
    Working(String),
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
        version::require(place)?;
        if managed {
            manifest::verify(place)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    match check() {
        Err(error) => Found::Damaged(format!("{error:#}")),
        Ok(()) => Found::Working(match fs::read_link(place) {
            Ok(target) => format!("a link to {}", target.display()),
            Err(_) if managed => "CPU build, fetched earlier, all files verified".into(),
            Err(_) => "put there by hand".into(),
        }),
    }
}

/// Makes `place` a link to the libtorch in `target`.
pub fn link(place: &Path, target: &Path) -> Result<()> {
    let target =
        fs::canonicalize(target).with_context(|| format!("cannot resolve {}", target.display()))?;
    let home = place.parent().unwrap_or(place);
    let new = home.join("new-link");
    let _ = fs::remove_file(&new); // left by a run that was cut off
    symlink(&target, &new).with_context(|| format!("cannot make a link in {}", home.display()))?;
    put(place, &new, &home.join("replaced"))
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
