//! `--cluster ray`: check everything here, then let Ray Train start the workers.
//!
//! Ray is spoken to by the Python package `tandem_ray`; this program starts its driver, hands it one request, and passes
//! on its output, signals and exit code.

mod driver_request;
mod python;

use std::io::IsTerminal;
use std::process::Command;

use serde_json::Value;
use tandem_launch::{delegate, exit_code};
use tandem_trainer::{Event, EventSink};

use crate::failure::{Failure, Outcome};
use crate::prepare::TOKEN_CACHE;
use crate::request::Request;
use crate::summary;
use crate::train::checked::Checked;
use python::Python;

/// Runs the whole training on a Ray cluster. Returns the exit code.
pub fn run(request: &Request) -> Outcome<i32> {
    let mesh = request.check()?;
    let python = Python::find()?;
    let mut checked = Checked::new(request, mesh)?;
    checked.keep_configuration(request)?;
    let address = request.common().cluster.ray_address.as_deref();
    let mut lines = vec![format!("cluster   Ray, {}", address.unwrap_or("auto"))];
    lines.extend(summary::lines(
        request,
        mesh,
        &checked.prepared,
        &checked.storage.location,
    ));
    checked.display.event(Event::Summary(lines));

    let program = std::env::current_exe()
        .map_err(|error| Failure::other(format!("cannot find this program's own file: {error}")))?;
    let given = driver_request::build(request, &checked.name, python.needs_path_of(&program))?;
    drive(&python, &given, &checked)
}

fn drive(python: &Python, given: &Value, checked: &Checked) -> Outcome<i32> {
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
    if let Ok(cache) = std::path::absolute(&checked.prepared.token_cache) {
        command.env(TOKEN_CACHE, cache);
    }
    if !std::io::stderr().is_terminal() {
        command.env("RAY_COLOR_PREFIX", "0");
    }
    let code = delegate::run(&mut command, given.to_string().as_bytes(), &mut |line| {
        match serde_json::from_str::<Value>(line) {
            Ok(value) if value["status"].is_string() => outcome = Some(value),
            // Standard output stays free for results, as under the local controller.
            _ => eprintln!("{line}"),
        }
    })
    .map_err(|error| Failure::other(format!("cannot run {}: {error}", python.program.display())))?;
    match (code, outcome) {
        (exit_code::OK, Some(outcome)) => {
            eprintln!(
                "done; metrics and checkpoints are in {}",
                shown(&outcome["path"])
            );
        }
        (exit_code::STOPPED_AFTER_SAVING, Some(outcome)) => eprintln!(
            "stopped after saving {}; --resume_from {name} continues",
            shown(&outcome["checkpoint"]),
        ),
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
