//! The whole command line: what was typed, and what the files that it names have besides.

#[cfg(test)]
mod config_tests;
#[cfg(test)]
mod resume_tests;

use std::ffi::OsString;

use clap::Command;
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};

use crate::config_file;
use crate::ds_config::{self, DsConfig};
use crate::line::{Line, has_flag, mesh};
use crate::resumed_flags;

/// A whole command line, and what is to be said about where it comes from.
#[derive(Debug)]
pub struct Complete {
    /// The words behind the program's name. No file is named in them any more.
    pub args: Vec<OsString>,
    /// Lines for the summary of the run.
    pub notes: Vec<String>,
}

/// `args` (without the program's name) with what the files that they name have besides: in the order in which they count,
/// `--config`, `--deepspeed`, and the flags of the run that `--resume_from` continues.
///
/// # Errors
/// Wrong usage: a file that cannot be read or that has what is no flag; what contradicts another.
pub fn complete(
    command: &Command,
    args: &[OsString],
    environment: &Environment,
) -> Outcome<Complete> {
    let mut line = Line::new(args);
    if let Some(path) = line.take(config_file::FLAG) {
        let what = format!("--config {}", path.display());
        let wrong = |problem: String| Failure::usage(format!("{what}: {problem}"));
        let mut keys = config_file::flags(command, path.as_ref()).map_err(wrong)?;
        mesh::follow(&line, &mut keys).map_err(wrong)?;
        line.add_missing(&keys).map_err(wrong)?;
    }
    // Whoever starts workers has said all of it to them.
    let is_told = environment.run_dir.is_some();
    let run = match line.value("resume_from") {
        Some(from) if !is_told => resumed_flags::read(command, &line, &from, environment)?,
        _ => None,
    };
    let mut notes = Vec::new();
    let of_run = run.as_ref().map(|run| run.for_line(&line));
    let mut of_run = of_run.unwrap_or_default();
    let ds_config = has_flag(command, ds_config::FLAG).then(|| line.take(ds_config::FLAG));
    if let Some(path) = ds_config.flatten() {
        let file = DsConfig::read(path.as_ref())?;
        if let Some(tp_size) = file.tp_size(&line, &of_run)? {
            line.add("tp_size", &tp_size.into());
        }
        mesh::follow(&line, &mut of_run).map_err(Failure::usage)?;
        let dp_size = mesh::of_deepspeed(&mut line, &of_run);
        notes.extend(file.apply(&mut line, dp_size)?);
    }
    if let Some(run) = &run {
        mesh::follow(&line, &mut of_run)
            .map_err(|problem| Failure::usage(format!("--resume_from {}: {problem}", run.name)))?;
        notes.extend(run.notes(command, &line, &of_run));
        line.add_missing(&of_run)
            .map_err(|problem| Failure::usage(format!("{}: {problem}", run.location)))?;
    }
    line.refuse_fp16()?;
    Ok(Complete {
        args: line.words,
        notes,
    })
}
