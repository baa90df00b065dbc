//! Limits that are really there, set by a shell for a process of its own.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What `tandem-fake-worker limits` says with the limit that `ulimit` sets.
fn under(ulimit: &str, threads: &str, descriptors: &str) -> (bool, String) {
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit {ulimit}; exec \"$@\""), "sh"])
        .args([env!("CARGO_BIN_EXE_tandem-fake-worker"), "limits"])
        .args([threads, descriptors])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text)
}

/// Root may have as many threads as it likes, so it starts the program as a user whom nobody else is.
#[test]
fn a_thread_that_is_refused_is_an_error_with_all_limits() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    // By another process: a program that is open for writing cannot be started, and what another test starts meanwhile would have
    // it open for a moment.
    let mut copy = Command::new("cp");
    copy.arg(env!("CARGO_BIN_EXE_tandem-fake-worker"));
    assert!(copy.arg(&program).status().unwrap().success());
    for path in [folder.path(), &program] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&program);
    command.args(["limits", "8", "16", "1"]);
    if rustix::process::geteuid().is_root() {
        command.uid(54_321);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let start = "this run needs 8 threads here, and the system refuses to start number 1 (";
    assert!(text.starts_with(start), "{text}");
    let limit = "processes and threads of this user: 1 (`ulimit -u`, RLIMIT_NPROC)";
    assert!(text.contains(limit), "{text}");
    assert!(text.contains("/proc/sys/kernel/threads-max"), "{text}");
    assert!(text.contains("or use fewer workers"), "{text}");
}

#[test]
fn a_limit_is_named_at_once() {
    let (good, text) = under("-n 64", "4", "65");
    assert!(!good);
    assert_eq!(
        text,
        "this run needs about 65 open files and connections in one process, and the limit is 64 (`ulimit -n`, \
         RLIMIT_NOFILE); raise it, or use fewer workers\n"
    );
    let (good, text) = under("-Sn 64", "4", "65");
    assert!(good, "a soft limit is raised: {text}");
    // Stacks of two MiB each.
    let (good, text) = under("-v 200000", "1000", "16");
    assert!(!good);
    let start = "this run needs 1000 threads here, and the system refuses to start number ";
    assert!(text.starts_with(start), "{text}");
    assert!(
        text.contains(": 200000 KiB (`ulimit -v`, RLIMIT_AS)"),
        "{text}"
    );
}
