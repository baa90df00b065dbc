//! Dependencies that nobody uses: each is compiled, licensed and kept up to date for nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{assert_none, files, text};

/// A dependency of a manifest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Dependency {
    name: String,
    /// For tests only.
    is_dev: bool,
    /// There for its features alone, as a comment above it says, or taken in by one of the crate's own features.
    is_for_features: bool,
}

/// What a crate's manifest lists.
fn dependencies(manifest: &str) -> Vec<Dependency> {
    let mut found = Vec::new();
    let mut section = "";
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
            continue;
        }
        let name: String = line
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c))
            .collect();
        if name.is_empty() || !section.ends_with("dependencies") {
            continue;
        }
        found.push(Dependency {
            is_dev: section.ends_with("dev-dependencies"),
            is_for_features: manifest.contains(&format!("\"dep:{name}\"")),
            name,
        });
    }
    found
}

/// Whether some code names a crate: at the beginning of a path, or in a macro that does.
fn names(code: &str, dependency: &str) -> bool {
    let name = dependency.replace('-', "_");
    code.match_indices(&name).any(|(position, _)| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let (before, after) = (&code[..position], &code[position + name.len()..]);
        !before.ends_with(is_word) && !after.starts_with(is_word)
    })
}

fn complaints(manifest: &Path, text: &str, sources: &[(PathBuf, String)]) -> Vec<String> {
    let folder = manifest.parent().unwrap_or(Path::new(""));
    let own: Vec<_> = sources
        .iter()
        .filter(|(path, _)| path.starts_with(folder))
        .collect();
    let is_program = |path: &Path| {
        let rest = path.strip_prefix(folder).unwrap_or(path);
        !["tests", "benches", "examples"]
            .iter()
            .any(|tests| rest.starts_with(tests))
    };
    dependencies(text)
        .into_iter()
        .filter(|it| !it.is_for_features)
        .filter(|it| {
            let mut may = own.iter().filter(|(path, _)| it.is_dev || is_program(path));
            !may.any(|(_, code)| names(code, &it.name))
        })
        .map(|it| {
            format!(
                "{} depends on {}, which nobody uses",
                manifest.display(),
                it.name
            )
        })
        .collect()
}

#[test]
fn every_dependency_is_used() {
    let files = files();
    let with = |name: &str| -> Vec<(PathBuf, String)> {
        files
            .iter()
            .filter(|path| path.to_string_lossy().ends_with(name))
            .map(|path| (path.clone(), text(path)))
            .collect()
    };
    let sources = with(".rs");
    let (workspace, manifests): (Vec<_>, Vec<_>) = with("Cargo.toml")
        .into_iter()
        .partition(|(path, _)| path.components().count() == 1);
    let mut found: Vec<String> = manifests
        .iter()
        .flat_map(|(path, text)| complaints(path, text, &sources))
        .collect();

    // The workspace's versions are for its crates.
    let of_crates: BTreeSet<String> = manifests
        .iter()
        .flat_map(|(_, text)| dependencies(text))
        .map(|dependency| dependency.name)
        .collect();
    let shared = dependencies(&workspace[0].1);
    println!(
        "{} manifests, {} shared versions checked",
        manifests.len(),
        shared.len()
    );
    assert!(
        shared.len() > 20,
        "the workspace's dependencies were not read"
    );
    let unused = shared.iter().filter(|it| !of_crates.contains(&it.name));
    found.extend(unused.map(|it| format!("no crate of the workspace depends on {}", it.name)));
    assert_none(&found);
}

#[test]
fn unused_dependencies_are_noticed() {
    let manifest = "[dependencies]\nserde_json.workspace = true\nif-addrs = \"0.15\"\n\n[dev-dependencies]\ntempfile.workspace = true\n";
    let of = |sources: &[(&str, &str)]| {
        let sources: Vec<(PathBuf, String)> = sources
            .iter()
            .map(|(path, code)| (PathBuf::from(path), (*code).to_owned()))
            .collect();
        complaints(Path::new("crates/x/Cargo.toml"), manifest, &sources).len()
    };
    let (lib, test) = ("crates/x/src/lib.rs", "crates/x/tests/it.rs");
    assert_eq!(of(&[]), 3);
    let code = "use serde_json::Value; fn f() { if_addrs::get(); }";
    assert_eq!(of(&[(lib, code)]), 1);
    assert_eq!(of(&[(lib, code), (test, "tempfile::tempdir()")]), 0);
    // What only tests use is a dev-dependency; names that merely contain it are others.
    assert_eq!(of(&[(test, code), (lib, "fn my_serde_json() {}")]), 3);
}
