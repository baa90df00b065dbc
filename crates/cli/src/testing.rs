//! What fuzz tests need of the command line. Only with the feature `testing`; no program has it.

use std::ffi::OsString;
use std::path::Path;

use clap::{CommandFactory, Parser};
use tandem_run::failure::Outcome;
use tandem_run::spec::RunSpec;

use crate::config_file;
use crate::flags::train::{DeepSpeedFlags, FsdpFlags};

/// Takes the file at `path` for one of `--config`, with both entry points, up to the run that it describes. Returns what
/// was said against it.
pub fn flags_of_file(path: &Path) -> Vec<String> {
    let fsdp = said(path, FsdpFlags::into_spec);
    let deepspeed = said(path, DeepSpeedFlags::into_spec);
    fsdp.into_iter().chain(deepspeed).collect()
}

fn said<F: CommandFactory + Parser>(
    path: &Path,
    into_spec: impl FnOnce(F) -> Outcome<RunSpec>,
) -> Option<String> {
    let args = [OsString::from("--config"), path.into()];
    let line = match config_file::expand(&F::command(), &args) {
        Ok(line) => line,
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
