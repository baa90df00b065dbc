//! Style as a test: what the compiler and clippy cannot know about this repository.
//!
//! Each rule is a function from text to complaints, so that a test here can also show that it notices what it forbids.

mod circles;
mod dependencies;
mod edges;
mod repository;
mod sources;
mod unused;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the checkout.
fn root() -> &'static Path {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir)
}

/// All that is or could be committed, relative to the root: links that lead nowhere, too, and what is deleted but not committed so.
fn listed() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output()
        .expect("git lists the files to check");
    assert!(
        output.status.success(),
        "git ls-files failed: is this a git checkout?"
    );
    let listing = String::from_utf8(output.stdout).expect("paths are UTF-8");
    listing.split_terminator('\0').map(PathBuf::from).collect()
}

/// The files of [`listed`].
fn files() -> Vec<PathBuf> {
    let mut files = listed();
    files.retain(|path| root().join(path).is_file());
    files.sort();
    files.dedup();
    assert!(
        files.len() > 50,
        "only {} files found: not the whole checkout",
        files.len()
    );
    files
}

/// The text of a file, for files that hold text.
fn text(path: &Path) -> String {
    fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("cannot read {} as text: {error}", path.display()))
}

/// Fails with all complaints at once.
#[track_caller]
fn assert_none(complaints: &[String]) {
    assert!(
        complaints.is_empty(),
        "{} complaints:\n  {}",
        complaints.len(),
        complaints.join("\n  ")
    );
}
