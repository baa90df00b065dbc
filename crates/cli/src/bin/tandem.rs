//! Tools around training: hold a model against PyTorch, measure a step.

use std::process::ExitCode;

fn main() -> ExitCode {
    tandem_cli::tandem::main()
}
