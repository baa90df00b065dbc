//! The `train_fsdp` entry point.

mod launcher;

use std::process::ExitCode;

fn main() -> ExitCode {
    launcher::become_tandem("train_fsdp")
}
