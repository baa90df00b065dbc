//! The two entry points: `train_deepspeed` and `train_fsdp`.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tandem_launch::{exit_code, tell};
use tandem_run::environment::Environment;
use tandem_run::failure::Outcome;
use tandem_run::session::end;
use tandem_run::spec::RunSpec;
use tandem_run::start;

use crate::auto_mesh;
use crate::command_line::{Complete, complete};
use crate::flags::choices::CheckChoice;
use crate::flags::train::{DeepSpeedFlags, FsdpFlags};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    DeepSpeed,
    Fsdp,
}

impl EntryPoint {
    /// The one of this name.
    pub fn of(name: &OsStr) -> Option<Self> {
        [Self::DeepSpeed, Self::Fsdp]
            .into_iter()
            .find(|one| name == one.name())
    }

    fn name(self) -> &'static str {
        match self {
            Self::DeepSpeed => "train_deepspeed",
            Self::Fsdp => "train_fsdp",
        }
    }
}

/// Runs one of them with the arguments behind its name.
pub fn main(entry_point: EntryPoint, args: &[OsString], environment: &Environment) -> ExitCode {
    let name = entry_point.name();
    show_as(name);
    let command = match entry_point {
        EntryPoint::DeepSpeed => DeepSpeedFlags::command(),
        EntryPoint::Fsdp => FsdpFlags::command(),
    };
    if is_for_information(args) {
        // It prints that and ends.
        command.get_matches_from(std::iter::once(&OsString::from(name)).chain(args));
        return ExitCode::SUCCESS;
    }
    let Complete { args, mut notes } = match complete(&command, args, environment) {
        Ok(complete) => complete,
        Err(failure) => return end(Err(failure)),
    };
    let parse = |args: &[OsString]| {
        let line = std::iter::once(OsString::from(name)).chain(args.iter().cloned());
        match entry_point {
            EntryPoint::DeepSpeed => {
                let flags = DeepSpeedFlags::parse_from(line);
                (flags.common.cluster.check_flags, flags.into_spec())
            }
            EntryPoint::Fsdp => {
                let flags = FsdpFlags::parse_from(line);
                (flags.common.cluster.check_flags, flags.into_spec())
            }
        }
    };
    let args = match auto_mesh::resolved(args, &mut notes, |args| parse(args).1) {
        Ok(args) => args,
        Err(failure) => return end(Err(failure)),
    };
    let (check_flags, spec) = parse(&args);
    let spec = spec.map(|spec| RunSpec { notes, ..spec });
    match check_flags {
        None => {}
        Some(CheckChoice::Flags) => return end(spec.map(|_| exit_code::OK)),
        Some(CheckChoice::All) => {
            return end(spec.and_then(|spec| could_begin(&spec, environment)));
        }
    }
    // Workers are started from this program's file, whose name is another one.
    let worker_args: Vec<OsString> = std::iter::once(name.into()).chain(args).collect();
    start::train(spec, &worker_args, environment)
}

/// Says whether the run could begin.
fn could_begin(spec: &RunSpec, environment: &Environment) -> Outcome<i32> {
    let notes = start::check(spec, environment)?;
    for line in spec.notes.iter().chain(&notes) {
        tell!("{line}");
    }
    tell!("the run could begin");
    Ok(exit_code::OK)
}

/// Whether it asks what there is to say, which no file has a part in.
fn is_for_information(args: &[OsString]) -> bool {
    let asks = |arg: &OsString| {
        ["--help", "-h", "--version", "-V"]
            .iter()
            .any(|it| arg == it)
    };
    args.iter().any(asks)
}

/// Lets tools that list processes (`top`, `ps -C`, `pkill`) know this one by the name of its entry point.
fn show_as(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        // Only a name: nothing depends on it.
        let _ = rustix::thread::set_name(&name);
    }
}
