//! `cargo xtask build-time`: what a release build from nothing costs, package by package.
//!
//! The cost is in CPU seconds, which mean the same on a machine with other work to do. rustc and the C compiler are started
//! through this program, which notes what each took; cargo's `--timings` would tell only how long each ran beside the others.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Rows of the table.
const MOST_EXPENSIVE: usize = 25;

/// Set for the compilers: the file that takes a line for each.
const LOG: &str = "TANDEM_BUILD_TIME_LOG";

/// Clock ticks of `/proc/self/stat` in a second, which Linux has fixed.
const TICKS_PER_S: f64 = 100.0;

/// Builds the binaries into a folder of its own, which is deleted, and prints the packages that took longest.
pub fn run(workspace: &Workspace, features: Option<&str>) -> Result<()> {
    let target = workspace.target_dir()?.join("build-time");
    clear(&target)?;
    fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    let log = target.join("seconds.txt");
    let this_program = env::current_exe().context("cannot find this program itself")?;
    let mut build = workspace.cargo();
    build
        .args(["build", "--release", "--package=tandem-cli"])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTC_WRAPPER", &this_program)
        .env("CC", &this_program)
        .env(LOG, &log);
    if let Some(features) = features {
        build.args(["--features", features]);
    }
    let before = children_s()?;
    let status = build.status().context("cannot run `cargo build`")?;
    let total = children_s()? - before;
    let lines = fs::read_to_string(&log);
    clear(&target)?;
    if !status.success() {
        bail!("`cargo build --release` failed ({status})");
    }
    print!("{}", report(&lines.context("nothing was compiled")?, total));
    Ok(())
}

/// What this program does when cargo or a build script starts it in place of a compiler.
pub fn as_compiler() -> Option<ExitCode> {
    let log = env::var_os(LOG)?;
    Some(compile(Path::new(&log)).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    }))
}

/// Runs the compiler that was meant, and notes what it took.
fn compile(log: &Path) -> Result<ExitCode> {
    let mut arguments: Vec<OsString> = env::args_os().skip(1).collect();
    // cargo names the rustc to run; for the C compiler there are only its own arguments.
    let is_rustc = arguments.first().is_some_and(|first| {
        Path::new(first)
            .file_stem()
            .is_some_and(|name| name == "rustc")
    });
    let compiler = match is_rustc {
        true => arguments.remove(0),
        false => "cc".into(),
    };
    let status = Command::new(&compiler)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot start {}", compiler.display()))?;
    if let Ok(package) = env::var("CARGO_PKG_NAME") {
        let line = format!("{package} {:.2}\n", children_s()?);
        let mut log = File::options().create(true).append(true).open(log)?;
        log.write_all(line.as_bytes())?;
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// CPU seconds, of user and system, of all processes that this one has waited for.
fn children_s() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    // The name of the program, in brackets, may hold blanks.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = fields
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Ok(ticks / TICKS_PER_S)
}

/// The table: the most expensive packages, all others, what no compiler took, and the sum.
fn report(log: &str, total: f64) -> String {
    let mut packages: HashMap<&str, f64> = HashMap::new();
    for (name, seconds) in log.lines().filter_map(|line| line.rsplit_once(' ')) {
        *packages.entry(name).or_default() += seconds.parse().unwrap_or(0.0);
    }
    let compilers: f64 = packages.values().sum();
    let count = packages.len();
    let mut packages: Vec<(&str, f64)> = packages.into_iter().collect();
    packages.sort_by(|(name, one), (other_name, other)| {
        other.total_cmp(one).then_with(|| name.cmp(other_name))
    });
    let rest = packages.split_off(MOST_EXPENSIVE.min(count));
    let line = |name: &str, seconds: f64| {
        format!(
            "{name:<32} {seconds:>8.1} {:>7.1}\n",
            100.0 * seconds / total
        )
    };
    let mut text = format!("\n{:<32} {:>8} {:>7}\n", "package", "CPU s", "%");
    for (name, seconds) in packages {
        text += &line(name, seconds);
    }
    if !rest.is_empty() {
        let seconds = rest.iter().map(|(_, seconds)| seconds).sum();
        text += &line(&format!("{} others", rest.len()), seconds);
    }
    text += &line("build scripts, cargo", (total - compilers).max(0.0));
    text + &line(&format!("{count} packages"), total)
}

fn clear(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seconds_of_a_package_are_added_and_the_largest_come_first() {
        let mut log = String::from("small 1.00\nlarge 10.50\nsmall 2.00\n");
        for number in 0..MOST_EXPENSIVE {
            log += &format!("p{number:02} 0.10\n");
        }
        let text = report(&log, 20.0);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines[1..5],
            [
                "package CPU s %",
                "large 10.5 52.5",
                "small 3.0 15.0",
                "p00 0.1 0.5"
            ]
        );
        let end = [
            "2 others 0.2 1.0",
            "build scripts, cargo 4.0 20.0",
            "27 packages 20.0 100.0",
        ];
        assert_eq!(lines[lines.len() - 3..], end, "{text}");
    }

    #[test]
    fn the_seconds_of_a_child_are_counted() {
        let before = children_s().expect("known");
        let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let status = Command::new("sh").args(["-c", spin]).status();
        assert!(status.expect("runs").success());
        assert!(children_s().expect("known") > before);
    }
}
