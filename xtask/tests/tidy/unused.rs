//! Public items that no program uses. The compiler warns of private ones only: what is public might have a user elsewhere.
//! Here all users are in the repository.
//!
//! A word is a use, whatever it means where it stands: an item that shares its name with another one is not noticed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::{assert_none, files, text};

/// Public items that no program uses, and why they stay.
const EXCEPTIONS: [(&str, &str); 2] = [
    (
        "in_folder",
        "checkpoints under names that tests, examples and benchmarks choose; a run's own names come from RunDir",
    ),
    (
        "of_text",
        "the encoder without a template, with which every test of the data starts",
    ),
];

/// What begins the definition of an item.
const KINDS: [&str; 7] = ["fn", "struct", "enum", "const", "trait", "type", "static"];

/// What stands before that which no program has.
const FOR_TESTS: [&str; 2] = ["#[cfg(test)]\n", "#[cfg(feature = \"testing\")]\n"];

/// Where the code of a file has modules for tests: the position, and the line that begins the module.
fn test_modules(code: &str) -> impl Iterator<Item = (usize, &str)> {
    FOR_TESTS.iter().flat_map(move |mark| {
        code.match_indices(mark).filter_map(|(start, mark)| {
            let line = code[start + mark.len()..].lines().next()?;
            let is_module = ["mod ", "pub mod ", "pub(crate) mod "]
                .iter()
                .any(|begin| line.starts_with(begin));
            is_module.then_some((start, line))
        })
    })
}

/// The files of modules for tests, and the folders of their own.
fn test_files(sources: &[(PathBuf, String)]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (path, text) in sources {
        for (_, line) in test_modules(text) {
            let name = line.split_once("mod ").map_or("", |(_, name)| name);
            let Some(name) = name.strip_suffix(';') else {
                continue;
            };
            let folder = match path.file_stem() {
                Some(stem) if stem != "lib" => path.with_extension(""),
                _ => path.parent().unwrap_or(path).to_owned(),
            };
            found.push(folder.join(name).with_extension("rs"));
            found.push(folder.join(name));
        }
    }
    found
}

/// The code of a file that a program may run, and the rest: tests, examples, benchmarks.
fn parts(path: &Path, text: &str, test_files: &[PathBuf]) -> (String, String) {
    let code: String = text
        .lines()
        .flat_map(|line| [line.split("//").next().unwrap_or_default(), "\n"])
        .collect();
    let folders = ["tests", "benches", "examples"];
    let mut components = path.components();
    if components.any(|part| folders.iter().any(|folder| part.as_os_str() == *folder))
        || test_files.iter().any(|place| path.starts_with(place))
    {
        return (String::new(), code);
    }
    // Tests are at the end of a file.
    let tests = test_modules(&code)
        .filter(|(_, line)| line.ends_with('{'))
        .map(|(start, _)| start)
        .min();
    let program = code[..tests.unwrap_or(code.len())].to_owned();
    (program, code[tests.unwrap_or(code.len())..].to_owned())
}

/// The words of some code, without those of its `pub use`: passing on is no use.
fn words(code: &str) -> impl Iterator<Item = &str> {
    let mut statements = code.split("pub use ");
    let first = statements.next();
    let behind = statements.map(|rest| rest.split_once(';').map_or("", |(_, rest)| rest));
    first.into_iter().chain(behind).flat_map(|code| {
        code.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
    })
}

/// The names of a crate's public items, functions of types included, and of public fields.
fn public_names(code: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for line in code.lines() {
        let Some(rest) = line.trim_start().strip_prefix("pub ") else {
            continue;
        };
        let mut words = words(rest);
        let is_field = rest
            .split_once(':')
            .is_some_and(|(name, _)| name.chars().all(|c| c.is_alphanumeric() || c == '_'));
        if is_field {
            names.extend(words.next());
            continue;
        }
        let Some(kind) = words.next() else { continue };
        if kind == "mod" || kind == "use" {
            continue;
        }
        // `pub const fn`, `pub unsafe extern "C" fn`.
        let is_function = format!(" {rest}").contains(" fn ");
        let keyword = if is_function { "fn" } else { kind };
        if KINDS.contains(&keyword) {
            let mut of_line = self::words(rest).skip_while(|word| *word != keyword);
            names.extend(of_line.nth(1));
        }
    }
    names
}

/// Items of `sources` that no program uses, with the file and whether tests do.
fn unused(sources: &[(PathBuf, String)]) -> Vec<(String, PathBuf, bool)> {
    let test_files = test_files(sources);
    let parts: Vec<_> = sources
        .iter()
        .map(|(path, text)| (path, parts(path, text, &test_files)))
        .collect();
    let (mut in_programs, mut in_tests) = (HashMap::new(), HashMap::new());
    for (_, (program, tests)) in &parts {
        for (code, counts) in [(program, &mut in_programs), (tests, &mut in_tests)] {
            for word in words(code) {
                *counts.entry(word).or_insert(0) += 1;
            }
        }
    }
    let mut found = Vec::new();
    for (path, (program, _)) in &parts {
        if !path.starts_with("crates") {
            continue;
        }
        for name in public_names(program) {
            // One is the definition.
            if in_programs.get(name) == Some(&1) {
                let is_tested = in_tests.contains_key(name);
                found.push((name.to_owned(), (*path).clone(), is_tested));
            }
        }
    }
    found
}

fn complaints(sources: &[(PathBuf, String)], exceptions: &[(&str, &str)]) -> Vec<String> {
    let unused = unused(sources);
    let is_excepted = |name: &str| exceptions.iter().any(|(excepted, _)| *excepted == name);
    let mut complaints: Vec<String> = unused
        .iter()
        .filter(|(name, ..)| !is_excepted(name))
        .map(|(name, path, is_tested)| {
            let users = match is_tested {
                true => "only tests use",
                false => "nobody uses",
            };
            format!("{}: {users} `{name}`, which is public", path.display())
        })
        .collect();
    let stale = exceptions
        .iter()
        .filter(|(name, _)| !unused.iter().any(|(found, ..)| found == name));
    complaints.extend(stale.map(|(name, _)| {
        format!("`{name}` is used, or is gone: it is no exception any more (unused.rs)")
    }));
    complaints
}

#[test]
fn every_public_item_is_used_by_a_program() {
    let sources: Vec<_> = files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| (path.clone(), text(&path)))
        .collect();
    let names: usize = sources
        .iter()
        .map(|(path, text)| public_names(&parts(path, text, &[]).0).len())
        .sum();
    println!("{names} public items checked");
    assert!(names > 500, "only {names} public items found");
    assert_none(&complaints(&sources, &EXCEPTIONS));
}

#[test]
fn unused_items_are_noticed() {
    let of = |sources: &[(&str, &str)], exceptions: &[(&str, &str)]| {
        let sources: Vec<_> = sources
            .iter()
            .map(|(path, text)| (PathBuf::from(path), (*text).to_owned()))
            .collect();
        complaints(&sources, exceptions)
    };
    let lib = "pub use room::dead;\npub const fn dead(x: u8) {}\npub struct Used {\n    pub silent: u8,\n}\n\
        // dead, silent\npub(crate) fn own() {}\n";
    let room = (
        "crates/x/src/room.rs",
        "#[cfg(feature = \"testing\")]\nmod double;\n",
    );
    let user = ("crates/y/src/lib.rs", "fn f(x: Used) { x.silent; }\n");
    let found = of(&[("crates/x/src/lib.rs", lib)], &[]);
    assert_eq!(found.len(), 3, "{found:?}");
    let found = of(&[("crates/x/src/lib.rs", lib), user], &[]);
    assert_eq!(
        found,
        ["crates/x/src/lib.rs: nobody uses `dead`, which is public"]
    );
    for test in [
        ("crates/x/tests/it.rs", "dead(1);"),
        ("crates/x/src/room/double.rs", "dead(1);"),
        (
            "crates/y/src/b.rs",
            "#[cfg(test)]\nmod tests {\n    dead(1);\n}",
        ),
    ] {
        let found = of(&[("crates/x/src/lib.rs", lib), room, user, test], &[]);
        assert_eq!(
            found,
            ["crates/x/src/lib.rs: only tests use `dead`, which is public"]
        );
    }
    let sources = [("crates/x/src/lib.rs", lib), user];
    assert_none(&of(&sources, &[("dead", "a reason")]));
    let found = of(&sources, &[("dead", "a reason"), ("Used", "a reason")]);
    assert!(found[0].contains("no exception any more"), "{found:?}");
}
