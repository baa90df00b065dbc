//! Programs that a test makes and then starts.
//!
//! Other processes write them: a program that is open for writing cannot be started (`ETXTBSY`), and whatever another test starts
//! while this one writes has the file open for a moment, too.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Leaves a shell script of these lines at `path`.
pub fn write_script(path: &Path, lines: &str) {
    let mut shell = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = shell.stdin.take().unwrap();
    write!(input, "#!/bin/sh\n{lines}\n").unwrap();
    drop(input);
    assert!(shell.wait().unwrap().success());
}

/// Leaves a copy of a program at `path`.
pub fn copy_program(program: &str, path: &Path) {
    let status = Command::new("cp").arg(program).arg(path).status();
    assert!(status.unwrap().success());
}
