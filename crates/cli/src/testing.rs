//! What fuzz tests need of the command line. Only with the feature `testing`; no program has it.

use std::ffi::OsString;
use std::path::Path;

use clap::{CommandFactory, Parser};
use tandem_run::environment::Environment;
use tandem_run::failure::Outcome;
use tandem_run::spec::RunSpec;

use crate::command_line::complete;
use crate::flags::train::{DeepSpeedFlags, FsdpFlags};

/// Takes the file at `path` for one of `--config`, with both entry points, up to the run that it describes. Returns what
/// was said against it.
pub fn flags_of_file(path: &Path) -> Vec<String> {
    let args = [OsString::from("--config"), path.into()];
    both(&args)
}

/// The same for the folder of a run that goes on.
pub fn flags_of_run(folder: &Path) -> Vec<String> {
    let args = [OsString::from("--resume_from"), folder.into()];
    both(&args)
}

/// The same for a file of DeepSpeed's, which one of them takes.
pub fn flags_of_deepspeed(path: &Path) -> Option<String> {
    let args = ["--num_workers=4".into(), "--deepspeed".into(), path.into()];
    said(&args, DeepSpeedFlags::into_spec)
}

fn both(args: &[OsString]) -> Vec<String> {
    let fsdp = said(args, FsdpFlags::into_spec);
    let deepspeed = said(args, DeepSpeedFlags::into_spec);
    fsdp.into_iter().chain(deepspeed).collect()
}

fn said<F: CommandFactory + Parser>(
    args: &[OsString],
    into_spec: impl FnOnce(F) -> Outcome<RunSpec>,
) -> Option<String> {
    let line = match complete(&F::command(), args, &Environment::read()) {
        Ok(complete) => complete.args,
        Err(failure) => return Some(failure.message),
    };
    let line = std::iter::once(OsString::from("train")).chain(line);
    match F::try_parse_from(line).map(into_spec) {
        Err(error) => Some(error.to_string()),
        Ok(Err(failure)) => Some(failure.message),
        Ok(Ok(spec)) => serde_json::to_value(&spec)
            .err()
            .map(|error| error.to_string()),
    }
}
