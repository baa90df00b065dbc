//! The stages that show that Tandem computes the same with other versions of libtorch.
//!
//! What is built knows no version, so the test binaries of this build are started again, with another libtorch.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{CRATES, Options, Stage};
use crate::setup;
use crate::setup::releases::{OLDEST, Release};
use crate::workspace::Workspace;

/// A set of tests that depends on what libtorch computes.
struct Suite {
    package: &'static str,
    /// The test target; `None` for all of the package.
    target: Option<&'static str>,
    /// What of it runs where a sample is enough.
    sample: Sample,
}

/// What of a suite is in the sample.
enum Sample {
    All,
    Test(&'static str),
    Nothing,
}

const SUITES: [Suite; 4] = [
    // The binding, and the kernels against libtorch's own operations.
    Suite {
        package: "tandem-torch",
        target: None,
        sample: Sample::All,
    },
    Suite {
        package: "tandem-tensor",
        target: None,
        sample: Sample::All,
    },
    Suite {
        package: "tandem-comm",
        target: Some("conformance"),
        sample: Sample::Nothing,
    },
    // Every mesh, both strategies and all ZeRO stages with one model: twelve runs. It has norms of queries and keys,
    // which the other models lack.
    Suite {
        package: "tandem-cli",
        target: Some("golden"),
        sample: Sample::Test("qwen3_qknorm"),
    },
];

/// How much to run with a version.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Extent {
    Full,
    Sample,
}

/// What `options` ask for besides the version in use, whose number is `in_use`.
pub fn wanted(options: &Options, in_use: &str) -> Option<(&'static Release, Extent)> {
    // A filter is for a quick look.
    let is_oldest = in_use == OLDEST.version;
    (options.filter.is_none() && !is_oldest).then_some((OLDEST, Extent::Sample))
}

/// A test binary that cargo built.
#[derive(Clone, Debug, PartialEq)]
pub struct TestBinary {
    package: String,
    target: String,
    executable: PathBuf,
    /// Where cargo would start it.
    folder: PathBuf,
}

/// Builds all tests of the crates, in the same way as the stage that runs them, and returns their binaries.
pub fn build(workspace: &Workspace) -> Result<Vec<TestBinary>> {
    let output = workspace
        .cargo()
        .arg("test")
        .args(CRATES)
        .args([
            "--tests",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run `cargo test --no-run`")?;
    ensure!(
        output.status.success(),
        "the tests do not build ({})",
        output.status
    );
    test_binaries(&String::from_utf8_lossy(&output.stdout))
}

/// The test binaries that cargo's messages, one JSON object per line, tell of.
fn test_binaries(messages: &str) -> Result<Vec<TestBinary>> {
    let mut binaries = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value =
            serde_json::from_str(line).with_context(|| format!("cargo printed {line}"))?;
        let is_test = message["profile"]["test"] == true;
        let Some(executable) = message["executable"].as_str().filter(|_| is_test) else {
            continue;
        };
        let field = |value: &Value, name: &str| {
            let text = value[name].as_str().map(str::to_owned);
            text.with_context(|| format!("cargo names no {name} in {line}"))
        };
        let manifest = PathBuf::from(field(&message, "manifest_path")?);
        let folder = manifest.parent().unwrap_or(&manifest).to_path_buf();
        // Packages are in folders named like them, without the prefix that all share.
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        binaries.push(TestBinary {
            package: format!("tandem-{name}"),
            target: field(&message["target"], "name")?,
            executable: executable.into(),
            folder,
        });
    }
    Ok(binaries)
}

/// The stage of one version. Fetches that version where it is missing.
///
/// # Errors
/// If it cannot be fetched, or if a suite has no test binary.
pub fn stage(
    workspace: &Workspace,
    binaries: &[TestBinary],
    release: &'static Release,
    extent: Extent,
    options: &Options,
) -> Result<Stage> {
    let libtorch = setup::fetch_beside(workspace, release)?;
    let mut commands = commands(binaries, extent, options)?;
    for command in &mut commands {
        libtorch.give_to(command);
    }
    Ok(Stage {
        name: name(release, extent),
        commands,
    })
}

/// What the table calls the stage.
pub fn name(release: &Release, extent: Extent) -> String {
    match extent {
        Extent::Full => format!("torch {}", release.version),
        Extent::Sample => format!("torch {}, some", release.version),
    }
}

/// The commands of a stage: the suites that `extent` has, in the order of the table.
fn commands(binaries: &[TestBinary], extent: Extent, options: &Options) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for suite in &SUITES {
        let only = match (extent, &suite.sample) {
            (Extent::Sample, Sample::Nothing) => continue,
            (Extent::Sample, Sample::Test(test)) => Some(*test),
            _ => None,
        };
        let of_suite: Vec<_> = binaries
            .iter()
            .filter(|binary| binary.package == suite.package)
            .filter(|binary| suite.target.is_none_or(|target| binary.target == target))
            .collect();
        ensure!(
            !of_suite.is_empty(),
            "{} has no test binary {}",
            suite.package,
            suite.target.unwrap_or_default()
        );
        for binary in of_suite {
            let mut command = Command::new(&binary.executable);
            command
                .current_dir(&binary.folder)
                .env("CARGO_MANIFEST_DIR", &binary.folder)
                .args(only)
                .args(options.filter.as_deref().map(OsStr::new));
            if options.long && extent == Extent::Full {
                command.arg("--include-ignored");
            }
            commands.push(command);
        }
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(package: &str, target: &str) -> TestBinary {
        TestBinary {
            package: package.into(),
            target: target.into(),
            executable: format!("/target/debug/deps/{target}-0123").into(),
            folder: format!("/checkout/crates/{}", package.trim_start_matches("tandem-")).into(),
        }
    }

    fn built() -> Vec<TestBinary> {
        [
            ("tandem-torch", "tandem_torch"),
            ("tandem-tensor", "tandem_tensor"),
            ("tandem-tensor", "threads"),
            ("tandem-comm", "tandem_comm"),
            ("tandem-comm", "conformance"),
            ("tandem-cli", "golden"),
            ("tandem-cli", "entry_points"),
        ]
        .map(|(package, target)| binary(package, target))
        .to_vec()
    }

    fn shown(extent: Extent, options: &Options) -> Vec<String> {
        commands(&built(), extent, options)
            .expect("all suites are there")
            .iter()
            .map(super::super::shown)
            .collect()
    }

    #[test]
    fn binaries_are_read_from_what_cargo_prints() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/c/crates/comm/Cargo.toml","target":{"name":"tandem_comm"},"#,
            r#""profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/c/crates/comm/Cargo.toml","target":{"name":"conformance"},"#,
            r#""profile":{"test":true},"executable":"/target/debug/deps/conformance-0123"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/c/crates/cli/Cargo.toml","target":{"name":"tandem"},"#,
            r#""profile":{"test":false},"executable":"/target/debug/tandem"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        let mut expected = binary("tandem-comm", "conformance");
        expected.folder = "/c/crates/comm".into();
        assert_eq!(test_binaries(messages).expect("cargo's format"), [expected]);
    }

    #[test]
    fn a_version_runs_all_suites_and_a_sample_less() {
        let options = Options::default();
        assert_eq!(
            shown(Extent::Full, &options),
            [
                "tandem_torch-0123",
                "tandem_tensor-0123",
                "threads-0123",
                "conformance-0123",
                "golden-0123"
            ]
        );
        assert_eq!(
            shown(Extent::Sample, &options),
            [
                "tandem_torch-0123",
                "tandem_tensor-0123",
                "threads-0123",
                "golden-0123 qwen3_qknorm"
            ]
        );
        let long = Options {
            long: true,
            filter: Some("mistral".into()),
            ..Options::default()
        };
        assert!(
            shown(Extent::Full, &long)
                .contains(&"golden-0123 mistral --include-ignored".to_owned())
        );
        let error = commands(&built()[1..], Extent::Sample, &options).expect_err("one is missing");
        assert!(error.to_string().contains("tandem-torch"), "{error}");
    }

    #[test]
    fn the_sample_of_the_golden_cases_is_one_of_them() {
        let root = Workspace::of_this_checkout().root().to_path_buf();
        let golden = std::fs::read_to_string(root.join("crates/cli/tests/golden.rs")).unwrap();
        let cases = golden.split("cases!(").nth(1).expect("the list of cases");
        for suite in &SUITES {
            if let Sample::Test(name) = suite.sample {
                assert!(cases.contains(name), "{name} would run nothing, and pass");
            }
        }
    }

    #[test]
    fn every_run_of_all_tests_has_a_sample_on_the_oldest_version() {
        let all = Options::default();
        assert_eq!(wanted(&all, "2.15.0"), Some((OLDEST, Extent::Sample)));
        assert_eq!(
            wanted(&all, OLDEST.version),
            None,
            "it has been run in full"
        );
        let some = Options {
            filter: Some("replay".into()),
            ..Options::default()
        };
        assert_eq!(wanted(&some, "2.15.0"), None);
    }
}
