//! The command line: flags to a run, names to commands, errors to exit codes.

mod auto_mesh;
mod bench_step;
mod checkpoint_location;
mod command_line;
mod config_file;
mod data;
mod doctor;
mod ds_config;
mod eval;
mod export;
mod flags;
mod gpu;
mod init;
mod inspect;
mod line;
mod measuring;
mod plan;
mod replay;
mod report;
mod resumed_flags;
mod tandem;
#[cfg(feature = "testing")]
pub mod testing;
mod train;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use tandem_launch::stop_signals;
use tandem_run::environment::Environment;

use crate::train::EntryPoint;

/// Does what the name that this program was started with says, or its first argument: `train_fsdp`, `train_deepspeed`, or
/// a command of `tandem`.
pub fn main() -> ExitCode {
    // First, while there is no other thread.
    let _unless_the_user_says_how = tandem_tensor::torch::let_idle_threads_sleep();
    // Without it, a file that becomes too large ends the process without a word, and that is all that is lost.
    let _ = stop_signals::too_large_a_file_is_an_error();
    let environment = Environment::read();
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let args: Vec<OsString> = words.collect();
    let own_name = Path::new(&name).file_name().unwrap_or(OsStr::new(""));
    if let Some(entry_point) = EntryPoint::of(own_name) {
        return train::main(entry_point, &args, &environment);
    }
    let behind_name = |(first, rest): (&OsString, _)| Some((EntryPoint::of(first)?, rest));
    match args.split_first().and_then(behind_name) {
        Some((entry_point, rest)) => train::main(entry_point, rest, &environment),
        None => tandem::main(&args, &environment),
    }
}
