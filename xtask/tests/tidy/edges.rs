//! Which crate may depend on which. ARCHITECTURE.md says why.

use std::process::Command;

use serde_json::Value;

use crate::{assert_none, root};

/// Each crate of the workspace with all that it may import of the others.
const ALLOWED: [(&str, &[&str]); 17] = [
    // What more than one crate must know about files of unknown origin.
    ("tandem-files", &[]),
    // Slices only: it is built and tested without libtorch.
    ("tandem-kernels", &[]),
    // The only crate that knows libtorch.
    ("tandem-torch", &[]),
    ("tandem-tensor", &["tandem-kernels", "tandem-torch"]),
    ("tandem-mesh", &[]),
    (
        "tandem-comm",
        &["tandem-kernels", "tandem-tensor", "tandem-mesh"],
    ),
    // It stands for NVIDIA's libraries, and is loaded by tests, not imported.
    ("tandem-simulated", &["tandem-kernels"]),
    // No collectives: a model is handed what it needs of them.
    ("tandem-model", &["tandem-files", "tandem-tensor"]),
    ("tandem-data", &["tandem-files"]),
    (
        "tandem-parallel",
        &[
            "tandem-tensor",
            "tandem-mesh",
            "tandem-comm",
            "tandem-model",
        ],
    ),
    // Arithmetic over the sizes that models and plans have; no process group, and no tensor: of those it knows the kinds of numbers.
    (
        "tandem-plan",
        &[
            "tandem-tensor",
            "tandem-mesh",
            "tandem-model",
            "tandem-parallel",
        ],
    ),
    // Shard specs, never a strategy: what is written by one must load into another.
    ("tandem-checkpoint", &["tandem-files", "tandem-mesh"]),
    (
        "tandem-trainer",
        &[
            "tandem-files",
            "tandem-tensor",
            "tandem-mesh",
            "tandem-comm",
            "tandem-model",
            "tandem-data",
            "tandem-parallel",
            "tandem-plan",
            "tandem-checkpoint",
        ],
    ),
    // It starts whatever keeps the worker contract, so it must not know what a worker does.
    ("tandem-launch", &["tandem-files"]),
    // What a run is and does. It sees no command line: whoever starts a run says so with a spec.
    (
        "tandem-run",
        &[
            "tandem-files",
            "tandem-tensor",
            "tandem-mesh",
            "tandem-comm",
            "tandem-model",
            "tandem-data",
            "tandem-parallel",
            "tandem-plan",
            "tandem-checkpoint",
            "tandem-trainer",
            "tandem-launch",
        ],
    ),
    (
        "tandem-cli",
        &[
            "tandem-files",
            "tandem-run",
            "tandem-tensor",
            "tandem-mesh",
            "tandem-comm",
            "tandem-model",
            "tandem-parallel",
            "tandem-plan",
            "tandem-checkpoint",
            "tandem-trainer",
            "tandem-launch",
        ],
    ),
    // It fetches libtorch, which all the others need to run.
    ("xtask", &[]),
];

/// Libraries that only some crates may use directly.
const RESERVED: [(&str, &[&str]); 4] = [
    ("libloading", &["tandem-torch", "tandem-comm"]),
    // Libraries return typed errors.
    ("anyhow", &["tandem-cli", "xtask"]),
    ("clap", &["tandem-cli"]),
    // Libraries say what happens; who hears it is decided once in a process.
    ("tracing-subscriber", &["tandem-run"]),
];

/// A dependency that is compiled into the crate: `(crate, dependency)`.
type Edge = (String, String);

fn complaints(edges: &[Edge]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (from, to) in edges {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == from) else {
            complaints.push(format!("{from} is not in the table of allowed edges"));
            continue;
        };
        let is_ours = ALLOWED.iter().any(|(name, _)| name == to);
        if is_ours && !allowed.contains(&to.as_str()) {
            complaints.push(format!("{from} must not depend on {to}"));
        }
        for (library, users) in RESERVED {
            if library == to && !users.contains(&from.as_str()) {
                complaints.push(format!(
                    "{from} must not depend on {to}: that is for {users:?}"
                ));
            }
        }
    }
    complaints
}

/// What the table permits and nobody does: a permission that is not needed invites.
fn unused(edges: &[Edge]) -> Vec<String> {
    let mut unused = Vec::new();
    for (from, allowed) in ALLOWED {
        for to in allowed {
            if !edges.contains(&(from.into(), (*to).into())) {
                unused.push(format!("{from} may depend on {to}, but does not"));
            }
        }
    }
    unused
}

/// Edges of the workspace, without dev-dependencies: a test may put more together than the crate itself knows.
fn edges(metadata: &Value) -> Vec<Edge> {
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages
        .iter()
        .flat_map(|package| {
            let dependencies = package["dependencies"].as_array().expect("a list");
            dependencies
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| {
                    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
                    (name(package), name(dependency))
                })
        })
        .collect()
}

#[test]
fn crates_import_only_what_they_may() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(root())
        .output()
        .expect("cargo describes the workspace");
    assert!(output.status.success(), "cargo metadata failed");
    let metadata = serde_json::from_slice(&output.stdout).expect("JSON");
    let edges = edges(&metadata);
    assert!(
        edges.contains(&("tandem-tensor".into(), "tandem-torch".into())),
        "the edges were not read: {edges:?}"
    );
    println!("{} dependencies checked", edges.len());
    assert_none(&complaints(&edges));
    assert_none(&unused(&edges));
}

#[test]
fn permissions_that_nobody_uses_are_noticed() {
    let all: Vec<Edge> = ALLOWED
        .iter()
        .flat_map(|(from, allowed)| allowed.iter().map(|to| ((*from).into(), (*to).into())))
        .collect();
    assert_none(&unused(&all));
    assert_eq!(unused(&all[1..]).len(), 1);
}

#[test]
fn forbidden_edges_are_noticed() {
    for (from, to) in [
        ("tandem-launch", "tandem-trainer"),
        ("tandem-checkpoint", "tandem-parallel"),
        ("tandem-model", "tandem-comm"),
        ("tandem-data", "tandem-tensor"),
        ("tandem-kernels", "tandem-tensor"),
        ("tandem-kernels", "tandem-torch"),
        ("tandem-model", "tandem-torch"),
        ("tandem-trainer", "anyhow"),
        ("tandem-run", "clap"),
        ("tandem-comm", "tracing-subscriber"),
        ("tandem-run", "tandem-cli"),
        ("tandem-unheard-of", "serde"),
    ] {
        let found = complaints(&[(from.into(), to.into())]);
        assert_eq!(found.len(), 1, "{from} -> {to}: {found:?}");
    }
    assert_none(&complaints(&[("tandem-model".into(), "serde".into())]));
}
