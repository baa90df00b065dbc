//! Rules for Rust source files.

use std::path::Path;

use crate::{assert_none, files, text};

/// A file that is longer than this wants splitting by concept. Tests at its end do not count.
const MAX_LINES: usize = 500;

/// Names that say nothing of what a file is about.
const VAGUE_NAMES: [&str; 6] = ["util", "utils", "common", "helper", "helpers", "misc"];

/// The crates that may hold unsafe code.
const UNSAFE_CRATES: [&str; 5] = [
    "crates/torch",
    "crates/kernels",
    "crates/tensor",
    "crates/comm",
    // For tests: it offers C interfaces and memory by address.
    "crates/simulated",
];

fn complaints(path: &Path, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut complain = |line: usize, what: &str| {
        complaints.push(format!("{}:{line}: {what}", path.display()));
    };
    if !text.starts_with("//!") {
        complain(1, "does not begin with `//!` and what the file is for");
    }
    let length = text
        .split("#[cfg(test)]\nmod ")
        .next()
        .unwrap_or_default()
        .lines()
        .count();
    let is_test = path.components().any(|part| part.as_os_str() == "tests");
    if length > MAX_LINES && !is_test {
        complain(
            length,
            &format!("is longer than {MAX_LINES} lines: split it by concept"),
        );
    }
    let is_program =
        path.starts_with("crates") && path.components().any(|part| part.as_os_str() == "src");
    for (line, number) in text.lines().zip(1..length + 1) {
        let code = line.split("//").next().unwrap_or_default();
        // The ends of all four names.
        let prints = |name: &str| {
            code.contains(&format!("{name}!(")) || code.contains(&format!("{name}! {{"))
        };
        if is_program && (prints("print") || prints("println")) {
            complain(
                number,
                "panics where nobody takes the output: print with `say!` or `tell!` (tandem_launch::output)",
            );
        }
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if VAGUE_NAMES.contains(&stem.as_ref()) {
        complain(1, "has a name that says nothing of what it is about");
    }
    let may_be_unsafe = UNSAFE_CRATES.iter().any(|place| path.starts_with(place));
    for (line, number) in text.lines().zip(1..) {
        let code = line.split("//").next().unwrap_or_default();
        // In two parts, so that these lines do not find themselves.
        for unfinished in [
            concat!("to", "do!("),
            concat!("unimpl", "emented!("),
            concat!("db", "g!("),
        ] {
            if code.contains(unfinished) {
                complain(number, &format!("`{unfinished})` is left"));
            }
        }
        if code.contains(concat!("#[", "ignore]")) {
            complain(
                number,
                "an ignored test must give its reason: `#[ignore = \"...\"]`",
            );
        }
        // The compiler denies unsafe code and clippy demands the SAFETY comments; nobody may turn that off.
        if code.contains(concat!("clippy::", "undocumented_unsafe_blocks")) {
            complain(
                number,
                "unsafe blocks are documented everywhere, without exception",
            );
        }
        if !may_be_unsafe && code.contains(concat!("unsafe", "_code")) {
            complain(
                number,
                "unsafe code is for the crates torch, kernels, tensor and comm, and for simulated",
            );
        }
    }
    complaints
}

/// Rules for the manifest of a crate: its lints.
fn manifest_complaints(path: &Path, text: &str) -> Vec<String> {
    let may_be_unsafe = UNSAFE_CRATES.iter().any(|place| path.starts_with(place));
    let inherits = text.contains("[lints]\nworkspace = true\n");
    let denies = |lint: &str| text.contains(&format!("{lint} = \"deny\"\n"));
    if may_be_unsafe && denies("undocumented_unsafe_blocks") && denies("unwrap_used") || inherits {
        return Vec::new();
    }
    vec![format!(
        "{}: does not take the workspace's lints",
        path.display()
    )]
}

#[test]
fn sources_keep_the_rules() {
    let sources: Vec<_> = files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect();
    println!("{} source files checked", sources.len());
    let found: Vec<_> = sources
        .iter()
        .flat_map(|path| complaints(path, &text(path)))
        .collect();
    assert_none(&found);
}

#[test]
fn every_crate_takes_the_lints() {
    let found: Vec<_> = files()
        .iter()
        .filter(|path| path.ends_with("Cargo.toml") && path.components().count() > 1)
        .flat_map(|path| manifest_complaints(path, &text(path)))
        .collect();
    assert_none(&found);
}

#[test]
fn broken_rules_are_noticed() {
    let path = Path::new("crates/model/src/rope.rs");
    let of = |text: &str| complaints(path, text);
    assert_none(&of("//! Rotary embeddings.\n"));
    assert_eq!(of("use std::fs;\n").len(), 1);
    for line in [
        concat!("to", "do!(\"later\");"),
        concat!("let x = db", "g!(y);"),
        concat!("#[", "ignore]"),
        concat!("#![allow(unsafe", "_code)]"),
        concat!("#![allow(clippy::", "undocumented_unsafe_blocks)]"),
    ] {
        let found = of(&format!("//! A file.\n{line}\n"));
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        assert!(
            found[0].starts_with("crates/model/src/rope.rs:2: "),
            "{found:?}"
        );
    }

    for line in [
        "println!(\"x\");",
        "eprintln!(\"x\");",
        "    print!(\"x\");",
    ] {
        let found = of(&format!("//! A file.\n{line}\n"));
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        let tests = format!("//! A file.\n#[cfg(test)]\nmod tests {{\n{line}\n}}\n");
        assert_none(&of(&tests));
        let elsewhere = format!("//! A file.\n{line}\n");
        assert_none(&complaints(Path::new("xtask/src/demo.rs"), &elsewhere));
    }

    let long = format!("//! A file.\n{}", "fn f() {}\n".repeat(MAX_LINES));
    assert_eq!(of(&long).len(), 1);
    let tested = format!(
        "//! A file.\n#[cfg(test)]\nmod tests {{\n{}}}\n",
        "\n".repeat(MAX_LINES)
    );
    assert_none(&of(&tested));
    assert_eq!(
        complaints(Path::new("crates/model/src/utils.rs"), "//! Things.\n").len(),
        1
    );

    let manifest = Path::new("crates/model/Cargo.toml");
    assert_eq!(manifest_complaints(manifest, "[package]\n").len(), 1);
    assert_none(&manifest_complaints(
        manifest,
        "[lints]\nworkspace = true\n",
    ));
}
