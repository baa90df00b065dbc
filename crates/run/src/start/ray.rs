//! `--cluster ray`: check everything here, then let Ray Train start the workers.
//!
//! Ray is spoken to by the Python package `tandem_ray`; this program starts its driver, hands it one request, and passes
//! on its output, signals and exit code.

mod python;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tandem_launch::{delegate, exit_code};
use tandem_trainer::{EventSink, TrainEvent};

use crate::environment::{EVAL_TOKEN_CACHE, Environment, TOKEN_CACHE};
use crate::failure::{Failure, Outcome};
use crate::show::{outcome, screen, summary};
use crate::spec::{Ray, RunSpec};
use crate::start::checked::Checked;
use crate::start::lease::Lease;
use crate::start::local;
use python::Python;

/// Runs the whole training on the cluster that `ray` names. Returns the exit code.
pub fn run(spec: &RunSpec, ray: &Ray, environment: &Environment) -> Outcome<i32> {
    let python = Python::find(environment)?;
    let program = worker_program(spec.compute.engine.strategy.entry_point())?;
    let mut checked = Checked::new(spec, environment, None)?;
    let _lease = Lease::take(&checked.storage)?;
    checked.keep_configuration(spec)?;
    let mut lines = vec![format!("cluster   Ray, {}", ray.address)];
    let location = &checked.storage.location;
    lines.extend(summary::lines(spec, &checked.prepared, location, None));
    checked.display.event(TrainEvent::Summary(lines));

    let binary = python.needs_path_of(&program, environment);
    let request = spec
        .clone()
        .for_other_folders(&checked.name, binary.map(Path::to_owned))?;
    let request = serde_json::to_vec(&request).map_err(Failure::other)?;
    let code = drive(&python, &request, &checked)?;
    // Storage that this machine does not share has the metrics where the first worker was.
    if code == exit_code::OK && checked.storage.run_dir.join("metrics.jsonl").is_file() {
        for line in outcome::lines(spec, &checked.storage, &checked.name, true) {
            screen::last_line(&line);
        }
    }
    Ok(code)
}

/// Looks whether there is a Python that speaks to Ray.
pub fn find_python(environment: &Environment) -> Outcome<()> {
    Python::find(environment).map(drop)
}

/// The program beside this one that Ray's workers start: they give it the flags of one strategy and nothing else.
fn worker_program(entry_point: &str) -> Outcome<PathBuf> {
    let program = local::own_file()?.with_file_name(entry_point);
    if program.is_file() {
        return Ok(program);
    }
    Err(Failure::usage(format!(
        "{} is not there, and Ray's workers need it; install or build all of Tandem's programs into one folder",
        program.display()
    )))
}

fn drive(python: &Python, request: &[u8], checked: &Checked) -> Outcome<i32> {
    let name = &checked.name;
    let mut outcome = None;
    // Python would take a SIGUSR1 that comes before it can handle it for a reason to end.
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' USR1; exec \"$0\" \"$@\""])
        .arg(&python.program)
        .args(["-m", python::DRIVER, "--parent"])
        .arg(std::process::id().to_string());
    // Where storage is shared, workers on every node find the cache; elsewhere they build their own.
    if let Some(caches) = checked.prepared.token_cache_variable() {
        command.env(TOKEN_CACHE, caches);
    }
    let evaluation = checked.prepared.evaluation.as_ref();
    let eval_cache = evaluation.map(|it| std::path::absolute(&it.data.token_cache));
    if let Some(Ok(cache)) = eval_cache {
        command.env(EVAL_TOKEN_CACHE, cache);
    }
    if !std::io::stderr().is_terminal() {
        command.env("RAY_COLOR_PREFIX", "0");
    }
    let code = delegate::run(&mut command, request, &mut |line| {
        match serde_json::from_str::<Value>(line) {
            Ok(value) if value["status"].is_string() => outcome = Some(value),
            // Standard output stays free for results, as under the local controller.
            _ => screen::last_line(line),
        }
    })
    .map_err(|error| Failure::other(format!("cannot run {}: {error}", python.program.display())))?;
    match (code, outcome) {
        (exit_code::OK, Some(outcome)) => {
            screen::last_line(&format!(
                "done; metrics and checkpoints are in {}",
                shown(&outcome["path"])
            ));
        }
        (exit_code::STOPPED_AFTER_SAVING, Some(outcome)) if outcome["checkpoint"].is_null() => {
            screen::last_line("stopped before there was anything to save");
        }
        (exit_code::STOPPED_AFTER_SAVING, Some(outcome)) => screen::last_line(&format!(
            "stopped after saving {}; --resume_from {name} continues",
            shown(&outcome["checkpoint"]),
        )),
        (_, Some(_)) => {}
        (code, None) => {
            return Err(Failure {
                exit_code: if code == exit_code::OK {
                    exit_code::FAILURE
                } else {
                    code
                },
                ..Failure::other(format!(
                    "the Ray driver ended with exit code {code} before the run had an outcome; its last lines above say why"
                ))
            });
        }
    }
    Ok(code)
}

fn shown(value: &Value) -> String {
    value.as_str().unwrap_or("none").to_owned()
}
