//! `tandem doctor --gpu`: the first hour on a GPU in one command. Each stage is a process of its own with a time limit, so one that
//! crashes or hangs takes no other along.

mod finding;
mod golden;
mod page;
mod program;
mod stage;
mod stages;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tandem_comm::Transport;
use tandem_launch::env::WorkerEnv;
use tandem_launch::{exit_code, say, tell};
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::libtorch::{Libtorch, workers};
use tandem_run::storage::write_whole;

use crate::doctor;
use crate::flags::gpu::GpuFlags;
use finding::{Finding, Found, Verdict};
use program::End;
use stage::{Context, Stage, device_name};

/// The files that are written.
const JSON: &str = "gpu.json";
const PAGE: &str = "gpu.md";

/// Runs the stages, or is one. Returns the exit code: 1 when a stage has failed.
pub fn run(flags: &GpuFlags, environment: &Environment) -> Outcome<i32> {
    if let [name, folder] = flags.stage.as_slice() {
        let stage = named(name)?;
        let finding = (stage.run)(&Context::new(flags, folder, stage)?)?;
        finding.write(folder, stage.name)?;
        return Ok(exit_code::OK);
    }
    let device = device_name(flags.device);
    // Else every stage would say so.
    Libtorch::ready(flags.device, workers(1, Transport::Auto))?;
    fs::create_dir_all(&flags.output)
        .map_err(|error| Failure::usage(format!("--output {}: {error}", flags.output.display())))?;
    let chosen = chosen(&flags.only)?;
    let (machine, problems) = doctor::sections(environment);
    for problem in problems {
        tell!("problem: {problem}");
    }
    let scratch = tempfile::tempdir().map_err(Failure::other)?;
    let mut findings = Vec::new();
    let begin = Instant::now();
    for stage in chosen {
        let left = Duration::from_secs(flags.limit).saturating_sub(begin.elapsed());
        let finding = in_its_process(flags, stage, device, scratch.path(), left)?;
        tell!("{}", page::line(&finding));
        findings.push(finding);
    }
    let found = Found {
        version: env!("CARGO_PKG_VERSION"),
        device,
        quick: flags.quick,
        machine,
        findings,
        seconds: begin.elapsed().as_secs_f64(),
    };
    let json = serde_json::to_string_pretty(&found).map_err(Failure::other)?;
    write_whole(&flags.output.join(JSON), &(json + "\n"))?;
    write_whole(&flags.output.join(PAGE), &page::page(&found))?;
    for file in [JSON, PAGE] {
        say!("{}", flags.output.join(file).display())?;
    }
    let failed = found
        .findings
        .iter()
        .any(|it| it.verdict == Verdict::Failed);
    Ok(if failed {
        exit_code::FAILURE
    } else {
        exit_code::OK
    })
}

/// What a worker of a stage does: of the one that has any.
pub fn run_worker(flags: &GpuFlags, env: &WorkerEnv, environment: &Environment) -> Outcome<()> {
    match flags.stage.as_slice() {
        [name, _] if named(name)?.name == stages::collectives::NAME => {
            stages::collectives::run_worker(flags, env, environment)
        }
        _ => Err(Failure::usage(
            "doctor is a single process; start it without RANK and WORLD_SIZE",
        )),
    }
}

fn named(name: &Path) -> Outcome<&'static Stage> {
    let found = stages::ALL
        .iter()
        .find(|stage| Path::new(stage.name) == name);
    found.ok_or_else(|| Failure::usage(format!("{} is no stage", name.display())))
}

/// The stages with one of these words in their names; without words, all.
fn chosen(words: &[String]) -> Outcome<Vec<&'static Stage>> {
    let wanted =
        |stage: &&Stage| words.is_empty() || words.iter().any(|word| stage.name.contains(word));
    let found: Vec<&Stage> = stages::ALL.iter().filter(wanted).collect();
    let unknown = words
        .iter()
        .find(|word| !stages::ALL.iter().any(|it| it.name.contains(*word)));
    if let Some(word) = unknown {
        let names: Vec<&str> = stages::ALL.iter().map(|stage| stage.name).collect();
        return Err(Failure::usage(format!(
            "--only {word}: no stage has that in its name; they are {}",
            names.join(", ")
        )));
    }
    Ok(found)
}

/// Runs a stage in its process. Whatever happens to that is a finding.
fn in_its_process(
    flags: &GpuFlags,
    stage: &Stage,
    device: &str,
    folder: &Path,
    left: Duration,
) -> Outcome<Finding> {
    let limit = stage.limit.min(left);
    if limit.is_zero() {
        let why = format!("the {} s of --limit are over", flags.limit);
        return Ok(Finding::not_possible(why).named(stage.name, 0.0));
    }
    let log = folder.join(format!("{}.log", stage.name));
    let begin = Instant::now();
    let mut command = program::own(line(flags, stage, device, folder))?;
    let end = program::run_for(&mut command, limit, &log).map_err(|error| {
        Failure::other(format!("cannot start the stage {}: {error}", stage.name))
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let finding = match end {
        End::Exited(0) => {
            let found = Finding::read(folder, stage.name)?;
            // Such as ranks that fell back from NCCL.
            let warnings = program::warnings(&log).into_iter();
            warnings.fold(found, Finding::noting)
        }
        End::Exited(code) => {
            let last = program::last_words(&log);
            Finding::failed(format!("it ended with exit code {code}: {last}"))
        }
        End::Killed(signal) => {
            let last = program::last_words(&log);
            Finding::failed(format!("signal {signal} ended it: {last}"))
        }
        End::TimedOut => {
            let last = program::last_words(&log);
            let after = limit.as_secs();
            Finding::failed(format!(
                "not done after {after} s, so it was killed: {last}"
            ))
        }
    };
    Ok(finding.named(stage.name, seconds))
}

fn line(flags: &GpuFlags, stage: &Stage, device: &str, folder: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = ["doctor", "--gpu", "--device", device]
        .map(OsString::from)
        .into();
    if flags.quick {
        line.push("--quick".into());
    }
    line.extend(["--python".into(), flags.python.clone().into()]);
    let folder: PathBuf = folder.into();
    line.extend(["--stage".into(), stage.name.into(), folder.into()]);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_chosen_by_parts_of_their_names() {
        let names = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            chosen(&words).map(|stages| stages.iter().map(|it| it.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), stages::ALL.len());
        assert_eq!(
            names(&["operations", "floor"]).unwrap(),
            ["floor", "operations"]
        );
        let error = names(&["speed"]).unwrap_err().message;
        assert!(
            error.contains("speed") && error.contains("operations"),
            "{error}"
        );
        let longest: Duration = stages::ALL.iter().map(|stage| stage.limit).max().unwrap();
        assert!(
            longest <= Duration::from_secs(150),
            "no stage may take it all"
        );
    }
}
