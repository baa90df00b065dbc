//! The `train_fsdp` entry point.

use std::process::ExitCode;

fn main() -> ExitCode {
    tandem_cli::train::main_fsdp()
}
