//! Which files of this machine a dataset's name stands for: one, those of a folder, or those of a list with patterns.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::SourceError;
use super::input::refuse_special;
use super::kind::Kind;

/// Below a folder.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Files, relative to the folder, with `/` between components, sorted. Hidden ones are not among them.
    pub(super) names: Vec<String>,
    /// Links to what is read at its own place already.
    pub(super) links: Vec<String>,
}

/// The files below `root`. A link that leads to another of them, or to a folder above itself, is not followed.
///
/// # Errors
/// A folder that cannot be read; a pipe, socket or device with the name of a file of data.
pub(super) fn walk(root: &Path) -> Result<Walk, SourceError> {
    let mut walk = Walk::default();
    let mut seen = HashSet::from([canonical(root)?]);
    // Links come last, so that what they lead to is read at its own place.
    let mut links = Vec::new();
    let mut pending = vec![String::new()];
    loop {
        while let Some(folder) = pending.pop() {
            for (name, is_link) in entries(root, &folder)? {
                if is_link {
                    links.push(name);
                } else {
                    take(root, name, &mut walk, &mut seen, &mut pending)?;
                }
            }
        }
        // One at a time: what it leads to may have links too.
        let Some(link) = links.pop() else { break };
        let path = root.join(&link);
        // A link to nothing is kept: whoever reads it says what is wrong.
        match path.canonicalize() {
            Ok(target) if seen.contains(&target) => walk.links.push(link),
            _ => take(root, link, &mut walk, &mut seen, &mut pending)?,
        }
    }
    walk.names.sort();
    walk.links.sort();
    Ok(walk)
}

fn take(
    root: &Path,
    name: String,
    walk: &mut Walk,
    seen: &mut HashSet<PathBuf>,
    pending: &mut Vec<String>,
) -> Result<(), SourceError> {
    let path = root.join(&name);
    if path.is_dir() {
        seen.insert(canonical(&path)?);
        pending.push(name + "/");
        return Ok(());
    }
    if Kind::of(&name).is_some() && path.exists() {
        refuse_special(&path)?;
    }
    // Two links to one file elsewhere are two files: in the hub's cache, files of equal content are such links.
    if !path.is_symlink() {
        seen.insert(canonical(&path)?);
    }
    walk.names.push(name);
    Ok(())
}

/// The names in a folder, relative to the root, and whether they are links; not the hidden ones.
fn entries(root: &Path, folder: &str) -> Result<Vec<(String, bool)>, SourceError> {
    let path = root.join(folder);
    let read = |source| SourceError::Io {
        path: path.clone(),
        source,
    };
    let mut entries = Vec::new();
    for entry in fs::read_dir(&path).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            let is_link = entry.file_type().map_err(read)?.is_symlink();
            entries.push((format!("{folder}{name}"), is_link));
        }
    }
    // In an order of its own: which of two links counts must not depend on the file system.
    entries.sort_by(|a, b| b.cmp(a));
    Ok(entries)
}

fn canonical(path: &Path) -> Result<PathBuf, SourceError> {
    path.canonicalize().map_err(|source| SourceError::Io {
        path: path.into(),
        source,
    })
}

/// The parts of a name that lists files and patterns of this machine, `part-1.jsonl,more/*.jsonl`. `None` for the name of one
/// file, of a folder or on the hub, which has neither commas nor wildcards.
pub fn file_list(name: &str) -> Option<Vec<&str>> {
    let is_list = name.contains([',', '*', '?', '[']) && !Path::new(name).exists();
    is_list.then(|| name.split(',').map(str::trim).collect())
}

/// The files of such a list, in its order, each once.
///
/// # Errors
/// A part that stands for no file; one that is no pattern.
pub(super) fn listed(name: &str, parts: &[&str]) -> Result<Vec<PathBuf>, SourceError> {
    let mut files: Vec<PathBuf> = Vec::new();
    for &part in parts {
        let path = Path::new(part);
        let found = if path.exists() {
            vec![path.to_owned()]
        } else {
            matches(name, part)?
        };
        if found.is_empty() {
            return Err(SourceError::NoMatch {
                name: name.into(),
                part: part.into(),
            });
        }
        for file in found {
            refuse_special(&file)?;
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// What a pattern matches, sorted, without folders.
fn matches(name: &str, pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
    let options = glob::MatchOptions {
        require_literal_leading_dot: true,
        require_literal_separator: true,
        ..glob::MatchOptions::default()
    };
    let paths = glob::glob_with(pattern, options).map_err(|error| SourceError::Pattern {
        name: name.into(),
        part: pattern.into(),
        reason: error.to_string(),
    })?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|error| SourceError::Io {
            path: error.path().into(),
            source: error.into(),
        })?;
        if !path.is_dir() {
            files.push(path);
        }
    }
    Ok(files)
}
