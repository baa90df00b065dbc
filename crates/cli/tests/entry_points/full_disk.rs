//! A disk that takes no more: saves fail and are reported, the run goes on, and only a last checkpoint that cannot be
//! written is the run's failure.
//!
//! The limit is on the size of a file, which unlike a small file system needs no privileges: metrics and logs fit, shards do
//! not.

use std::process::{Command, Stdio};

use crate::demo::{Run, losses, train};
use crate::saved;

/// The same command line, in a shell that allows files of `kib` KiB.
fn limited(run: &Run, kib: usize) -> Command {
    let inner = train(run);
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(format!("ulimit -f {kib}; exec \"$0\" \"$@\""))
        .arg(inner.get_program())
        .args(inner.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

#[test]
fn a_full_disk_is_reported_and_leaves_nothing_half_written() {
    let run = Run::new("fsdp", 1, 2).args(["--max_steps", "2", "--save_steps", "2"]);
    run.succeed();
    let run = run.args(["--max_steps", "8", "--resume_from", "run"]);
    let output = limited(&run, 16 << 10).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{text}");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("no checkpoint after step 4") && text.contains("training goes on"),
        "{text}"
    );
    assert!(
        text.contains("cannot save the state after step 8, the last of this run")
            && !text.contains("no checkpoint after step 8"),
        "{text}"
    );
    assert!(
        text.contains("shard-0000") && text.contains("File too large"),
        "{text}"
    );
    assert_eq!(losses(&run.dir()).len(), 8);
    assert_eq!(saved::steps(&run.dir()), [2]);
    saved::assert_nothing_torn(&run.dir());

    // With room again, it goes on from what there is.
    let dir = run.succeed();
    assert_eq!(saved::steps(&dir), [2, 4, 6, 8]);
    let whole = Run::new("fsdp", 1, 2).args(["--max_steps", "8"]);
    assert_eq!(losses(&dir), losses(&whole.succeed()));
}

#[test]
fn shared_memory_that_is_not_to_be_had_is_said() {
    let run = Run::new("fsdp", 2, 1).args(["--max_steps", "2"]);
    let output = limited(&run, 2 << 10).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{text}");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("no shared memory for group") && text.contains("TCP"),
        "{text}"
    );
}
