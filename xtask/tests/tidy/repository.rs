//! Rules for all files: what a repository should not carry.

use std::fs;
use std::path::{Component, Path};

use crate::{assert_none, files, listed, root, text};

/// A clone should stay quick.
const MAX_TOTAL_BYTES: u64 = 40_000_000;
const MAX_FILE_BYTES: u64 = 2_000_000;

/// Whether a person writes this file, so that the rules for text apply.
fn is_written_by_hand(path: &Path) -> bool {
    let generated = path.starts_with("tests-data")
        || path.starts_with("demo/data")
        || path.ends_with("tokenizer.json")
        || path.ends_with("Cargo.lock")
        || path.ends_with("LICENSE")
        || path
            .extension()
            .is_some_and(|extension| extension == "snap");
    let extensions = ["rs", "toml", "md", "py", "sh", "json", "yml", "yaml"];
    let is_text = path
        .extension()
        .is_some_and(|extension| extensions.iter().any(|known| *known == extension));
    !generated && (is_text || path.starts_with(".ci"))
}

fn complaints(path: &Path, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    // In two parts, so that these lines do not find themselves.
    let machine_paths = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
    ];
    for (line, number) in text.lines().zip(1..) {
        let mut complain = |what: &str| {
            complaints.push(format!("{}:{number}: {what}", path.display()));
        };
        // Two spaces at the end of a Markdown line are a line break, which is better written as a paragraph.
        if line.ends_with([' ', '\t', '\r']) {
            complain("white space at the end of the line");
        }
        for machine_path in machine_paths {
            // Inside a longer path, as in a URL, it is not at the root of a file system.
            let is_at_root = |position: usize| {
                !line[..position].ends_with(|c: char| c.is_alphanumeric() || "}._-~".contains(c))
            };
            if line
                .match_indices(machine_path)
                .any(|(position, _)| is_at_root(position))
            {
                complain(&format!("{machine_path} is a path of one machine"));
            }
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        complaints.push(format!("{}: no newline at the end", path.display()));
    }
    complaints
}

#[test]
fn text_keeps_the_rules() {
    let files: Vec<_> = files()
        .into_iter()
        .filter(|path| is_written_by_hand(path))
        .collect();
    println!("{} text files checked", files.len());
    let found: Vec<_> = files
        .iter()
        .flat_map(|path| complaints(path, &text(path)))
        .collect();
    assert_none(&found);
}

/// Whether the target of a link at `path` is outside of the repository, where another clone has nothing.
fn leads_out(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count() - 1;
    target.components().any(|component| match component {
        Component::RootDir | Component::Prefix(_) => true,
        Component::CurDir => false,
        Component::ParentDir if depth == 0 => true,
        Component::ParentDir => {
            depth -= 1;
            false
        }
        Component::Normal(_) => {
            depth += 1;
            false
        }
    })
}

#[test]
fn links_stay_in_the_repository() {
    let links = listed().into_iter().filter_map(|path| {
        let target = fs::read_link(root().join(&path)).ok()?;
        Some((path, target))
    });
    let found: Vec<_> = links
        .filter(|(path, target)| leads_out(path, target))
        .map(|(path, target)| format!("{} leads to {}", path.display(), target.display()))
        .collect();
    assert_none(&found);
    for (path, target, expected) in [
        ("a/b", "c", false),
        ("a/b", "../c/d", false),
        ("a/b", "../../c", true),
        ("b", "..", true),
        ("a/b", "/c", true),
        ("a/b", "c/../../../d", true),
    ] {
        let leads = leads_out(Path::new(path), Path::new(target));
        assert_eq!(leads, expected, "{path} to {target}");
    }
}

#[test]
fn the_repository_stays_small() {
    let mut total = 0;
    let mut found = Vec::new();
    for path in files() {
        let size = fs::metadata(root().join(&path)).map_or(0, |metadata| metadata.len());
        total += size;
        if size > MAX_FILE_BYTES {
            found.push(format!("{} has {size} bytes", path.display()));
        }
    }
    println!("{total} bytes in all");
    assert_none(&found);
    assert!(
        total < MAX_TOTAL_BYTES,
        "{total} bytes in all, at most {MAX_TOTAL_BYTES}"
    );
}

#[test]
fn broken_rules_are_noticed() {
    let of = |text: &str| complaints(Path::new("README.md"), text).len();
    assert_eq!(of("A line.\n"), 0);
    assert_eq!(of("A line. \n"), 1);
    assert_eq!(of("A line."), 1);
    assert_eq!(of(concat!("Look into /ho", "me/someone/file.\n")), 1);
    assert_eq!(of(concat!("See example.org/ho", "me/page.\n")), 0);
}
