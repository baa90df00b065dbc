//! The `train_deepspeed` entry point.

mod launcher;

use std::process::ExitCode;

fn main() -> ExitCode {
    launcher::become_tandem("train_deepspeed")
}
