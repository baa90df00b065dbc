//! Checkpoints in S3: written, listed, continued from and exported as on a local disk.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use std::time::Duration;

use crate::demo::{Run, losses, output_within, train};
use crate::moto::Moto;

#[test]
fn a_run_whose_storage_is_s3_saves_and_continues_there() {
    let moto = Moto::start();
    let url = moto.url("runs");
    let run =
        |steps: &str| Run::new("fsdp", 1, 2).args(["--max_steps", steps, "--save_steps", "2"]);
    let whole = run("6");
    let expected = losses(&whole.succeed());

    let remote = run("3").args(["--storage_path", &url, "--num_to_keep", "2"]);
    let local = remote.storage.path().to_str().unwrap().to_owned();
    let remote = remote.args(["--local_path", &local]);
    let start = |run: &Run| {
        let output = train(run)
            .envs(moto.options())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    start(&remote);
    // Its flags lie beside its checkpoints, for a machine that has neither logs nor them.
    std::fs::remove_dir_all(remote.dir()).unwrap();
    let flags = [
        "--resume_from",
        "run",
        "--storage_path",
        &url,
        "--max_steps",
        "6",
    ];
    let remote = remote.only(flags);
    let text = start(&remote);
    assert!(text.contains("step 3"), "{text}");
    assert!(text.contains("--max_steps 6, was 3"), "{text}");
    assert_eq!(losses(&remote.dir()), expected[3..], "bit for bit");

    let inspect = std::process::Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["inspect", &format!("{url}/run")])
        .envs(moto.options())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&inspect.stdout);
    println!("{text}");
    assert!(
        inspect.status.success() && text.contains("step 6"),
        "{text}"
    );
    let output = remote.storage.path().join("exported");
    let export = std::process::Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["export", "--checkpoint", &format!("{url}/run"), "--output"])
        .arg(&output)
        .envs(moto.options())
        .status();
    assert!(export.unwrap().success());
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(output.join(name).is_file(), "{name}");
    }
    // Nothing but logs and metrics is here.
    let here = std::fs::read_dir(remote.dir()).unwrap();
    for entry in here {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with("checkpoint_"), "{name}");
    }
}

/// Two machines know nothing of each other but what is in the storage.
#[test]
fn a_second_controller_with_the_same_prefix_is_refused_and_told_by_whom() {
    let moto = Moto::start();
    let url = moto.url("runs");
    let on_a_machine = || {
        let run = Run::new("fsdp", 1, 1).args(["--num_epochs", "10000", "--save_steps", "2"]);
        let local = run.storage.path().to_str().unwrap().to_owned();
        run.args(["--storage_path", &url, "--local_path", &local])
    };
    let first = on_a_machine();
    let mut command = train(&first);
    let mut child = command
        .envs(moto.options())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let saved = lines.find(|line| line.as_ref().unwrap().starts_with("saved checkpoint_"));
    assert!(saved.is_some(), "it ended without a checkpoint");
    let second = on_a_machine().args(["--resume_from", "run", "--max_steps", "5"]);
    let mut command = train(&second);
    command.envs(moto.options()).stderr(Stdio::piped());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let words = format!(
        "another controller runs this experiment: process {} on ",
        child.id()
    );
    assert!(text.contains(&words), "{text}");
    assert!(text.contains("controller_lease.json"), "{text}");

    // A controller that dies cannot give anything back; on its own host it is known to be dead.
    child.kill().unwrap();
    output_within(&mut child, Duration::from_secs(60));
    let steps = losses(&first.dir()).len() + 4;
    let third = second.args(["--max_steps", &steps.to_string()]);
    let mut command = train(&third);
    command.envs(moto.options()).stderr(Stdio::piped());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}
