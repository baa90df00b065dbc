//! Limits that are really there, set by a shell for a process of its own.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

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
