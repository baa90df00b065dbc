//! A second name of the program `tandem`: a file so small that it costs nothing to link, because it has nothing of the
//! engine in it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Becomes the `tandem` beside this file, called `name`. Returns only when that cannot be.
pub fn become_tandem(name: &str) -> ExitCode {
    let started = std::env::current_exe().map(|own| {
        let program = own.with_file_name("tandem");
        let error = Command::new(&program)
            .arg0(name)
            .args(std::env::args_os().skip(1))
            .exec();
        format!("cannot start {}: {error}", program.display())
    });
    let problem = started.unwrap_or_else(|error| format!("cannot find its own file: {error}"));
    // Where it cannot be written, the exit code says it.
    let _ = writeln!(
        std::io::stderr(),
        "error: {name} is a name of the program tandem, and {problem}; build (cargo build) or install both into one folder"
    );
    ExitCode::FAILURE
}
