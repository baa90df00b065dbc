//! The `train_deepspeed` entry point.

use std::process::ExitCode;

fn main() -> ExitCode {
    tandem_cli::train::main_deepspeed()
}
