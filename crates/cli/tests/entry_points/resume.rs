//! Saving, stopping and continuing, as a user asks for it.

use std::process::Stdio;
use std::time::Duration;

use crate::demo::{self, Run, losses, train};
use crate::saved;
use crate::tiny::Tiny;

/// Twelve steps of the demo model, with a checkpoint every four.
fn run(strategy: &str, tp: usize, dp: usize) -> Run {
    Run::new(strategy, tp, dp).args([
        "--max_steps",
        "12",
        "--save_steps",
        "4",
        "--batch_size",
        "2",
        "--learning_rate",
        "1e-3",
    ])
}

#[test]
fn a_run_that_was_interrupted_goes_on_bit_for_bit() {
    for (strategy, dtype) in [("fsdp", "bf16"), ("deepspeed", "bf16"), ("fsdp", "fp32")] {
        let uninterrupted = run(strategy, 2, 2).args(["--dtype", dtype]);
        let whole = uninterrupted.succeed();
        // 6 is between two checkpoints of the rule, and in the middle of an epoch.
        let parts = run(strategy, 2, 2).args(["--dtype", dtype, "--max_steps", "6"]);
        parts.succeed();
        let parts = parts.args(["--max_steps", "12", "--resume_from", "run"]);
        let dir = parts.succeed();
        assert_eq!(losses(&dir), losses(&whole), "{strategy} {dtype}");
        let (a, b) = (saved::newest(&dir), saved::newest(&whole));
        assert!(
            saved::content(&a) == saved::content(&b),
            "{strategy} {dtype}: weights or moments differ"
        );
        assert_eq!(saved::steps(&dir), [4, 6, 8, 12]);
        println!("{strategy} {dtype}: 12 losses and all states are equal bit for bit");
    }
}

#[test]
fn bf16_continues_on_another_mesh_within_its_tolerance() {
    let whole = losses(&run("fsdp", 2, 2).succeed());
    let parts = run("fsdp", 2, 2).args(["--max_steps", "6"]);
    parts.succeed();
    let other = run("deepspeed", 1, 2).args(["--zero_stage", "2", "--resume_from", "run"]);
    std::fs::rename(parts.dir(), other.dir()).unwrap();
    let losses = losses(&other.succeed());
    let worst = losses
        .iter()
        .zip(&whole)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    println!("bf16, fsdp 2x2 -> ZeRO-2 1x2: losses differ by {worst:.1e}");
    // bf16 keeps 8 bits: sums in another order differ by some 2^-9 of an activation.
    assert!(worst < 2e-2, "{worst}");
}

#[test]
fn epochs_end_with_a_checkpoint_and_only_as_many_are_kept_as_asked_for() {
    let run = Run::new("deepspeed", 1, 2).args([
        "--num_epochs",
        "4",
        "--debug_steps",
        "3",
        "--num_to_keep",
        "2",
    ]);
    let dir = run.succeed();
    assert_eq!(saved::steps(&dir), [9, 12]);
    let state = saved::newest(&dir).state().clone();
    assert_eq!((state.epoch, state.global_step), (3, 12));
    // Continuing at the end of an epoch begins the next.
    let run = run.args(["--num_epochs", "5", "--resume_from", "run"]);
    let dir = run.succeed();
    assert_eq!(saved::steps(&dir), [12, 15]);
    assert_eq!(losses(&dir).len(), 15);
}

#[test]
fn the_best_checkpoints_stay_and_the_latest_does_too() {
    let run = run("fsdp", 1, 1)
        .args(["--save_steps", "2", "--num_to_keep", "1"])
        .args(["--checkpoint_score_attribute", "step"])
        .args(["--checkpoint_score_order", "min"]);
    assert_eq!(saved::steps(&run.succeed()), [2, 12]);
}

#[test]
fn without_async_save_the_same_is_written() {
    let asynchronous = run("fsdp", 1, 2);
    let waiting = run("fsdp", 1, 2).args(["--async_save", "false"]);
    let (asynchronous_dir, waiting_dir) = (asynchronous.succeed(), waiting.succeed());
    assert_eq!(saved::steps(&waiting_dir), [4, 8, 12]);
    let content = |dir| saved::content(&saved::newest(dir));
    assert!(content(&waiting_dir) == content(&asynchronous_dir));
}

#[test]
fn a_signal_lets_the_run_save_and_leave_and_it_goes_on_from_there() {
    let mut runs = Vec::new();
    for signal in ["INT", "TERM"] {
        // It does not end before the signal comes, however late that is.
        let run = run("fsdp", 2, 1).args(["--max_steps", "1000000"]);
        let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
        run.wait_for_steps(5);
        demo::kill(child.id(), signal);
        let (code, text) = demo::output_within(&mut child, Duration::from_secs(60));
        assert_eq!(code, Some(75), "{text}");
        let go_on = format!("--resume_from {}", run.dir().display());
        assert!(text.contains(&go_on), "{text}");
        let done = losses(&run.dir()).len();
        assert!(done >= 5, "{done} steps");
        assert_eq!(saved::newest(&run.dir()).state().global_step, done as u64);
        let end = done + 8;
        let run = run.args(["--resume_from", "run", "--max_steps", &end.to_string()]);
        runs.push((signal, done, losses(&run.succeed())));
    }
    let longest = runs
        .iter()
        .map(|(_, _, losses)| losses.len())
        .max()
        .unwrap();
    let whole = run("fsdp", 2, 1).args(["--max_steps", &longest.to_string()]);
    let whole = losses(&whole.succeed());
    for (signal, done, losses) in runs {
        assert_eq!(losses.len(), done + 8);
        assert_eq!(losses, whole[..losses.len()], "SIG{signal} in step {done}");
        println!("SIG{signal} after step {done}: saved, left with 75, went on bit for bit");
    }
}

#[test]
fn sigusr1_saves_now_and_the_run_goes_on() {
    let run = run("deepspeed", 2, 1).args(["--max_steps", "1000000", "--save_steps", "0"]);
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    run.wait_for_steps(3);
    demo::kill(child.id(), "USR1");
    demo::wait_until("there is a checkpoint", || {
        !saved::steps(&run.dir()).is_empty()
    });
    let done = losses(&run.dir()).len();
    run.wait_for_steps(done + 1);
    demo::kill(child.id(), "TERM");
    let (code, text) = demo::output_within(&mut child, Duration::from_secs(60));
    assert_eq!(code, Some(75), "{text}");
    let steps = saved::steps(&run.dir());
    assert_eq!(steps.len(), 2, "{steps:?}");
    let end = losses(&run.dir()).len() as u64;
    assert!(
        (3..end).contains(&steps[0]) && steps[1] == end,
        "{steps:?}, {end}"
    );
}

#[test]
fn another_run_is_refused_with_what_differs() {
    let first = run("fsdp", 1, 1).args(["--max_steps", "2"]);
    first.succeed();
    let (code, text) = first.fail();
    assert_eq!(code, Some(2));
    assert!(text.contains("--resume_from run"), "{text}");
    let resumed = first.args(["--resume_from", "run", "--seed", "7", "--seq_length", "32"]);
    let (code, text) = resumed.fail();
    assert_eq!(code, Some(2));
    for difference in ["seed: 0 in the checkpoint, 7", "seq_length: 64", "data: "] {
        assert!(text.contains(difference), "{difference}: {text}");
    }
    let (code, text) = Run::new("fsdp", 1, 1).args(["--resume_from", "run"]).fail();
    assert_eq!(code, Some(2));
    assert!(text.contains("no checkpoint"), "{text}");
}

#[test]
fn changed_settings_are_shown_and_used() {
    let run = run("fsdp", 1, 1).args(["--max_steps", "4"]);
    run.succeed();
    let run = run.args([
        "--resume_from",
        "run",
        "--learning_rate",
        "5e-4",
        "--max_steps",
        "6",
    ]);
    let output = train(&run).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("changed  learning_rate: 0.001 in the checkpoint, 0.0005 in this run"),
        "{text}"
    );
    let metrics = std::fs::read_to_string(run.dir().join("metrics.jsonl")).unwrap();
    assert!(metrics.lines().nth(5).unwrap().contains("\"lr\":0.0005"));
}

/// A checkpoint holds the weights, so what the run began with may be gone, or be others, once there is one.
#[test]
fn a_run_goes_on_without_the_weights_that_it_began_with() {
    // In the second, the head is not tied although the config says so: the weights decided that, and are not asked again.
    for golden in ["llama3_rope", "tied_but_untied"] {
        let tiny = tiny_model(golden);
        let run = || {
            Run::new("fsdp", 1, 2)
                .args(tiny.args())
                .args(["--batch_size", "2", "--max_steps", "6"])
        };
        let whole = losses(&run().succeed());
        let parts = run().args(["--max_steps", "3"]);
        parts.succeed();
        let weights = tiny.model().join("model.safetensors");
        std::fs::write(&weights, "others by now").unwrap();
        let parts = parts.args(["--max_steps", "4", "--resume_from", "run"]);
        parts.succeed();
        std::fs::remove_file(&weights).unwrap();
        let parts = parts.args(["--max_steps", "6"]);
        assert_eq!(losses(&parts.succeed()), whole, "{golden}");

        // A run that begins needs them, and what is no weights must be what it was.
        let (code, text) = run().fail();
        assert!(
            code == Some(1) && text.contains("holds neither model.safetensors"),
            "{text}"
        );
        let config = tiny.model().join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let changed = text.replace("\"rms_norm_eps\": 1e-0", "\"rms_norm_eps\": 2e-0");
        assert_ne!(text, changed);
        std::fs::write(&config, changed).unwrap();
        let (code, text) = parts.args(["--max_steps", "8"]).fail();
        assert!(
            code == Some(2) && text.contains("not the same run"),
            "{text}"
        );
    }
}

/// A golden model; `tied_but_untied` is one whose config ties a head that its weights have.
fn tiny_model(golden: &str) -> Tiny {
    if golden != "tied_but_untied" {
        return Tiny::new(golden);
    }
    let tiny = Tiny::new("qwen2_untied");
    let config = tiny.model().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let tied = text.replace(
        "\"tie_word_embeddings\": false",
        "\"tie_word_embeddings\": true",
    );
    assert_ne!(text, tied);
    std::fs::write(config, tied).unwrap();
    tiny
}

/// Checkpoints of adapters hold the adapters alone.
#[test]
fn a_run_of_adapters_does_not_go_on_without_its_weights() {
    let tiny = Tiny::new("llama3_rope");
    let run = Run::new("fsdp", 1, 1)
        .args(tiny.args())
        .args(["--lora_r", "2", "--max_steps", "2"]);
    run.succeed();
    std::fs::remove_file(tiny.model().join("model.safetensors")).unwrap();
    let (code, text) = run
        .args(["--resume_from", "run", "--max_steps", "3"])
        .fail();
    assert!(
        code == Some(1) && text.contains("holds neither model.safetensors"),
        "{text}"
    );
}
