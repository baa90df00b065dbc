//! No circles of imports inside a crate: a module that needs another is not needed by it, so that each can be read, and
//! changed, after the ones that it imports.
//!
//! Modules are compared with their siblings, each with all that is below it as one: a file and its own folder may well know
//! each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use crate::{assert_none, files, text};

/// A module's path in its crate; the crate itself is empty.
type Module = Vec<String>;

/// The modules of one crate, with their texts.
type Modules = BTreeMap<Module, String>;

/// Module by module, which others it names.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// The module that a file is, and its crate's folder; `None` for what is no module of a library.
fn place(path: &Path) -> Option<(String, Module)> {
    let parts: Vec<&str> = path
        .components()
        .map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let source = parts.iter().position(|part| *part == "src")?;
    let mut module: Module = parts[source + 1..]
        .iter()
        .map(|part| (*part).into())
        .collect();
    let file = module.pop()?;
    match file.strip_suffix(".rs")? {
        "lib" | "main" if module.is_empty() => {}
        // Programs of their own.
        _ if module.first().is_some_and(|part| part == "bin") => return None,
        "mod" => {}
        name => module.push(name.to_owned()),
    }
    Some((parts[..source].join("/"), module))
}

/// What is compiled into the library, without comments.
fn code(text: &str) -> String {
    let own = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = own
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths of `a::{b, c::d}`: `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let segments = |text: &str| -> Vec<String> {
        text.split("::")
            .map(|part| {
                part.split_whitespace()
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            })
            .filter(|part| !part.is_empty())
            .collect()
    };
    let Some((before, group)) = tree.split_once('{') else {
        return vec![segments(tree)];
    };
    let group = group.rsplit_once('}').map_or(group, |(group, _)| group);
    let mut depth = 0;
    let is_cut = |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    };
    group
        .split(is_cut)
        .filter(|member| !member.trim().is_empty())
        .flat_map(paths)
        .map(|path| [segments(before), path].concat())
        .collect()
}

/// Every path in the code that begins in this crate: those of `use`, and those written out.
fn mentions(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (position, _) in code.match_indices(start) {
            let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$';
            if code[..position].ends_with(is_word) {
                continue;
            }
            let rest = &code[position..];
            let statement = rest.split(';').next().unwrap_or_default();
            if code[..position].trim_end().ends_with("use") {
                found.extend(paths(statement));
            } else {
                let path = rest.split(|c| !is_word(c)).next().unwrap_or_default();
                found.extend(paths(path));
            }
        }
    }
    found
}

/// The module that a path names or begins with.
fn deepest(modules: &Modules, path: &[String]) -> Module {
    (0..=path.len())
        .rev()
        .map(|length| &path[..length])
        .find(|part| modules.contains_key(*part))
        .unwrap_or_default()
        .to_vec()
}

/// A path, as seen from `module`, from the root of the crate.
fn absolute(module: &[String], path: &[String]) -> Module {
    let mut base = module.to_vec();
    for (index, part) in path.iter().enumerate() {
        match part.as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                base.pop();
            }
            _ => return [base.as_slice(), &path[index..]].concat(),
        }
    }
    base
}

/// What each module passes on under its own name (`pub use`): by module and name, where it really is.
fn passed_on(modules: &Modules) -> BTreeMap<(Module, String), Module> {
    let mut found = BTreeMap::new();
    for (module, code) in modules {
        for statement in code.split(';') {
            let Some((before, tree)) = statement.rsplit_once("use ") else {
                continue;
            };
            if !before.trim_end().ends_with([')', 'b']) {
                continue;
            }
            for path in paths(tree) {
                let Some(name) = path.last().cloned() else {
                    continue;
                };
                let home = deepest(modules, &absolute(module, &path));
                if home != *module {
                    found.insert((module.clone(), name), home);
                }
            }
        }
    }
    found
}

fn imports(modules: &Modules) -> Imports {
    let homes = passed_on(modules);
    let mut imports = Imports::new();
    for (module, code) in modules {
        for path in mentions(code) {
            let path = absolute(module, &path);
            let mut home = deepest(modules, &path);
            if let Some(name) = path.get(home.len())
                && let Some(further) = homes.get(&(home.clone(), name.clone()))
            {
                home = further.clone();
            }
            if home != *module {
                imports.entry(module.clone()).or_default().insert(home);
            }
        }
    }
    imports
}

/// The circles among the children of each module: who imports whom, in a line each.
fn circles(modules: &Modules) -> Vec<(BTreeSet<String>, String)> {
    let imports = imports(modules);
    let parents: BTreeSet<&[String]> = modules
        .keys()
        .flat_map(|module| (0..module.len()).map(|length| &module[..length]))
        .collect();
    let mut found = Vec::new();
    for parent in parents {
        let child = |module: &Module| -> Option<String> {
            let rest = module.strip_prefix(parent)?;
            rest.first().cloned()
        };
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, all) in &imports {
            for to in all {
                if let (Some(from), Some(to)) = (child(from), child(to))
                    && from != to
                {
                    edges.entry(from).or_default().insert(to);
                }
            }
        }
        let mut seen = BTreeSet::new();
        for start in edges.keys() {
            let circle: BTreeSet<String> = reached(&edges, start)
                .into_iter()
                .filter(|other| reached(&edges, other).contains(start))
                .collect();
            if !circle.is_empty() && seen.is_disjoint(&circle) {
                let lines = circle.iter().map(|from| {
                    let to = edges[from].intersection(&circle);
                    format!("{from} -> {}", to.cloned().collect::<Vec<_>>().join(", "))
                });
                let place = [parent.join("::"), lines.collect::<Vec<_>>().join("; ")];
                seen.extend(circle.clone());
                found.push((circle, place.join(" ")));
            }
        }
    }
    found
}

/// All that can be reached from a module in at least one step.
fn reached(edges: &BTreeMap<String, BTreeSet<String>>, start: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next = vec![start.to_owned()];
    while let Some(module) = next.pop() {
        for to in edges.get(&module).into_iter().flatten() {
            if found.insert(to.clone()) {
                next.push(to.clone());
            }
        }
    }
    found
}

#[test]
fn no_module_is_imported_by_what_it_imports() {
    let mut crates: BTreeMap<String, Modules> = BTreeMap::new();
    for path in files() {
        if let Some((name, module)) = place(&path) {
            let modules = crates.entry(name).or_default();
            modules.insert(module, code(&text(&path)));
        }
    }
    let count: usize = crates.values().map(Modules::len).sum();
    println!("{count} modules of {} crates checked", crates.len());
    assert!(count > 200, "the modules were not found");
    let complaints: Vec<String> = crates
        .iter()
        .flat_map(|(name, modules)| {
            let circles = circles(modules).into_iter();
            circles.map(move |(_, lines)| format!("{name}: {lines}"))
        })
        .collect();
    assert_none(&complaints);
}

#[test]
fn circles_are_noticed() {
    let of = |files: &[(&str, &str)]| {
        let modules = files.iter().map(|(path, text)| {
            let (_, module) = place(Path::new(path)).expect("a module");
            (module, code(text))
        });
        circles(&modules.collect()).len()
    };
    let (lib, a, b) = (
        "crates/x/src/lib.rs",
        "crates/x/src/a.rs",
        "crates/x/src/b.rs",
    );
    assert_eq!(of(&[(lib, ""), (a, "use crate::b::B;"), (b, "")]), 0);
    assert_eq!(
        of(&[
            (lib, ""),
            (a, "use crate::b::B;"),
            (b, "use crate::{a::A, c};")
        ]),
        1
    );
    assert_eq!(
        of(&[
            (lib, ""),
            (a, "fn f(x: crate::b::B) {}"),
            (b, "use super::a::A;")
        ]),
        1
    );
    // Through the crate's own list of what is public.
    let public = "pub use a::{A, Other};\npub use b::B as Renamed;";
    assert_eq!(
        of(&[(lib, public), (a, "use crate::b::B;"), (b, "use crate::A;")]),
        1
    );
    // Comments and tests import nothing.
    let tested = "// use crate::a::A;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n";
    assert_eq!(of(&[(lib, ""), (a, "use crate::b::B;"), (b, tested)]), 0);
    // A folder is as one from outside, and looked into by itself.
    let (c, d) = ("crates/x/src/a/c.rs", "crates/x/src/a/d.rs");
    assert_eq!(of(&[(lib, ""), (a, "use c::C;"), (c, "use super::A;")]), 0);
    assert_eq!(
        of(&[
            (lib, ""),
            (a, ""),
            (c, "use crate::b;"),
            (d, ""),
            (b, "use crate::a::d;")
        ]),
        1
    );
    assert_eq!(
        of(&[
            (lib, ""),
            (a, ""),
            (c, "use super::d::D;"),
            (d, "use super::c::C;")
        ]),
        1
    );
}
