//! The whole program, under all of its names.

use std::process::ExitCode;

fn main() -> ExitCode {
    tandem_cli::main()
}
