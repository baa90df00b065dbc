//! The example for torchrun, with torchrun itself, which starts and restarts the workers.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::demo::{self, Run, train};
use crate::programs::write_script;
use crate::workers::{assert_as_local, assert_whole, clean, free_port, long, short};

/// With torch's import in five processes, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(300);

/// `examples/torchrun.sh` with `run` as its `train_fsdp`: the example's own model is too large for a test.
fn example(run: &Run, max_restarts: usize) -> Command {
    let folder = run.storage.path().join("programs");
    std::fs::create_dir_all(&folder).unwrap();
    let worker = train(run);
    let words: Vec<String> = std::iter::once(worker.get_program())
        .chain(worker.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let stand_in = folder.join("train_fsdp");
    write_script(&stand_in, &format!("exec {}", words.join(" ")));
    // `cargo xtask test --long` installs torchrun and says where; else it is the one on PATH.
    let given = std::env::var_os("TANDEM_TORCH_BIN_DIR").into_iter();
    let path = given.chain(std::env::var_os("PATH"));
    let path: Vec<OsString> = std::iter::once(folder.into()).chain(path).collect();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut command = Command::new(examples.join("torchrun.sh"));
    clean(&mut command);
    command
        .env("PATH", path.join(":".as_ref()))
        .env("MASTER_PORT", free_port().to_string())
        .env("MAX_RESTARTS", max_restarts.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

#[test]
#[ignore = "needs the whole torch package, which is 5 GB"]
fn torchrun_trains_as_the_local_controller() {
    let run = short();
    let mut torchrun = example(&run, 0).spawn().unwrap();
    let (code, text) = demo::output_within(&mut torchrun, LIMIT);
    assert_eq!(code, Some(0), "{text}");
    assert_as_local(&run, 4);
}

#[test]
#[ignore = "needs the whole torch package, which is 5 GB"]
fn torchrun_restarts_all_from_the_newest_checkpoint_when_one_is_killed() {
    let run = long();
    let mut torchrun = example(&run, 1).spawn().unwrap();
    run.wait_for_steps(3);
    let workers = demo::workers_of(torchrun.id());
    assert_eq!(workers.len(), 4);
    let (_, third) = workers.iter().find(|(rank, _)| *rank == 3).unwrap();
    demo::kill(*third, "KILL");
    let (code, text) = demo::output_within(&mut torchrun, LIMIT);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("continuing from checkpoint_"), "{text}");
    assert_whole(&run);
    demo::assert_gone(&workers);
}

#[test]
#[ignore = "needs the whole torch package, which is 5 GB"]
fn torchrun_passes_sigterm_on_and_the_next_start_continues() {
    let run = long();
    let mut torchrun = example(&run, 0).spawn().unwrap();
    run.wait_for_steps(3);
    let workers = demo::workers_of(torchrun.id());
    demo::kill(torchrun.id(), "TERM");
    let (code, text) = demo::output_within(&mut torchrun, LIMIT);
    println!("torchrun ended with {code:?}: {text}");
    demo::assert_gone(&workers);
    let done = demo::losses(&run.dir()).len();
    println!("stopped after step {done}");
    let (code, text) = demo::output_within(&mut example(&run, 0).spawn().unwrap(), LIMIT);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains(&format!("step {done}")),
        "from where it was stopped: {text}"
    );
    assert_whole(&run);
}
