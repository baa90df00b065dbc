//! The two entry points as a user runs them: what they train, what they say, and what they leave behind.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::demo::{self, Run, losses, train, workers_of};

/// Loss of every step in fp32, for meshes and batch splits that see the same global batch of 4 rows.
#[test]
fn the_loss_depends_neither_on_the_mesh_nor_on_the_strategy_nor_on_micro_batches() {
    let splits = [
        ("fsdp", 1, 1, 4, 1, vec![]),
        ("fsdp", 1, 1, 1, 4, vec![]),
        ("fsdp", 2, 2, 2, 1, vec!["--sequence_parallel"]),
        ("deepspeed", 2, 1, 2, 2, vec!["--zero_stage", "0"]),
        ("deepspeed", 1, 2, 1, 2, vec!["--zero_stage", "2"]),
        (
            "deepspeed",
            2,
            2,
            1,
            2,
            vec!["--zero_stage", "1", "--activation_checkpointing"],
        ),
    ];
    let mut reference: Option<Vec<f64>> = None;
    for (strategy, tp, dp, rows, accumulation, extra) in splits {
        let run = Run::new(strategy, tp, dp)
            .args(["--dtype", "fp32", "--max_steps", "6"])
            .args(["--batch_size", &rows.to_string()])
            .args(["--gradient_accumulation_steps", &accumulation.to_string()])
            .args(extra);
        let losses = losses(&run.succeed());
        println!("{strategy} tp {tp} x dp {dp}, {accumulation} x {rows} rows: {losses:?}");
        let expected = reference.get_or_insert_with(|| losses.clone());
        assert_eq!(losses.len(), 6);
        for (step, (a, b)) in losses.iter().zip(expected.iter()).enumerate() {
            assert!(
                (a - b).abs() < 2e-5,
                "{strategy} {tp}x{dp}, step {}: {a} {b}",
                step + 1
            );
        }
    }
}

#[test]
fn two_runs_of_one_command_are_bitwise_equal() {
    for strategy in ["fsdp", "deepspeed"] {
        let run = || {
            let run = Run::new(strategy, 2, 2).args(["--max_steps", "5", "--dtype", "bf16"]);
            losses(&run.succeed())
        };
        let (a, b) = (run(), run());
        println!("{strategy}: {a:?}");
        assert_eq!(a, b, "{strategy}");
    }
}

#[test]
fn bf16_and_autocast_learn_as_fp32_does() {
    let last = |args: &[&str]| {
        let run = Run::new("fsdp", 2, 1)
            .args(["--max_steps", "30", "--learning_rate", "1e-3"])
            .args(args);
        let losses = losses(&run.succeed());
        println!("{args:?}: {:.4} -> {:.4}", losses[0], losses[29]);
        assert!(losses[29] < losses[0] - 1.0, "{args:?} did not learn");
        losses[29]
    };
    let fp32 = last(&["--dtype", "fp32"]);
    for args in [
        &["--dtype", "bf16"][..],
        &["--dtype", "bf16", "--autocast"],
        &["--reduce_dtype", "bf16"],
    ] {
        let other = last(args);
        assert!(
            (other - fp32).abs() < 0.05,
            "{args:?}: {other} against {fp32}"
        );
    }
}

#[test]
fn rows_of_one_document_train_with_padding() {
    let run = Run::new("deepspeed", 2, 1).args(["--packing", "false", "--max_steps", "4"]);
    let losses = losses(&run.succeed());
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
}

#[test]
fn a_run_leaves_metrics_configuration_and_history() {
    let run = Run::new("fsdp", 1, 2).args([
        "--max_steps",
        "3",
        "--warmup_steps",
        "2",
        "--lr_scheduler",
        "cosine",
    ]);
    let history = run.storage.path().join("history");
    let run = run.args(["--loss_output_dir", history.to_str().unwrap()]);
    let dir = run.succeed();
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["lr"], 0.0, "the warm-up starts at 0");
    assert_eq!(lines[2]["peak_memory_mb"].as_array().unwrap().len(), 2);
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("run_config.json")).unwrap())
            .unwrap();
    assert_eq!(config["entry_point"], "train_fsdp");
    assert_eq!(config["flags"]["warmup_steps"], 2);
    let losses: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(history.join("loss_history.json")).unwrap())
            .unwrap();
    assert_eq!(losses[1]["loss"], lines[1]["loss"]);
    assert!(dir.join("logs/rank_1.log").is_file());
}

#[test]
fn a_killed_worker_ends_the_run_promptly_with_its_name() {
    let run = Run::new("fsdp", 2, 2).args(["--num_epochs", "1000"]);
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    run.wait_for_steps(3);
    let workers = workers_of(child.id());
    assert_eq!(workers.len(), 4, "{workers:?}");
    let victim = workers.iter().find(|(rank, _)| *rank == 3).unwrap().1;
    let killed = Instant::now();
    demo::kill(victim, "KILL");
    let output = demo::output_within(&mut child, Duration::from_secs(60));
    println!("ended {:?} after the kill:\n{}", killed.elapsed(), output.1);
    assert_eq!(output.0, Some(1));
    assert!(
        output.1.contains("rank 3") && output.1.contains("SIGKILL"),
        "{}",
        output.1
    );
    demo::assert_gone(&workers);
}

#[test]
fn ctrl_c_ends_all_workers_cleanly() {
    let run = Run::new("deepspeed", 2, 1).args(["--num_epochs", "1000"]);
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    run.wait_for_steps(2);
    let workers = workers_of(child.id());
    demo::kill(child.id(), "INT");
    let output = demo::output_within(&mut child, Duration::from_secs(60));
    println!("{}", output.1);
    // Everything is saved.
    assert_eq!(output.0, Some(75), "{}", output.1);
    demo::assert_gone(&workers);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_before_the_update() {
    // A learning rate at which everything overflows within a few steps.
    let run = Run::new("fsdp", 2, 1).args([
        "--learning_rate",
        "1e30",
        "--max_steps",
        "20",
        "--max_grad_norm",
        "0",
    ]);
    let (code, text) = run.fail();
    assert_eq!(code, Some(1));
    assert!(text.contains("at step") && text.contains("rank"), "{text}");
    assert!(text.contains("NaN") || text.contains("inf"), "{text}");
}

/// Ten documents, one a row: three steps of four rows, of which the last has two.
fn ten_documents(run: Run) -> (Run, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ten.jsonl");
    let line = |n: usize| format!("{{\"text\": \"{}\"}}\n", "In the beginning ".repeat(n + 1));
    std::fs::write(&path, (0..10).map(line).collect::<String>()).unwrap();
    let run = run
        .args(["--dataset_name", path.to_str().unwrap(), "--dtype", "fp32"])
        .args(["--dataset_percentage", "100", "--packing", "false"]);
    (run, dir)
}

/// The ranks of the last step have other numbers of rows, or none, on every mesh.
#[test]
fn a_smaller_last_step_has_the_same_loss_on_every_mesh() {
    let splits = [
        ("fsdp", 1, 1, 4, 1),
        ("fsdp", 1, 2, 2, 1),
        ("fsdp", 2, 2, 1, 2),
        ("deepspeed", 1, 4, 1, 1),
        ("deepspeed", 2, 1, 1, 4),
    ];
    let mut reference: Option<(Vec<f64>, String)> = None;
    for (strategy, tp, dp, rows, accumulation) in splits {
        let (run, _data) = ten_documents(Run::new(strategy, tp, dp));
        let run = run
            .args(["--num_epochs", "2", "--learning_rate", "1e-3"])
            .args(["--batch_size", &rows.to_string()])
            .args(["--gradient_accumulation_steps", &accumulation.to_string()]);
        let dir = run.succeed();
        let found = losses(&dir);
        let tokens: Vec<String> = std::fs::read_to_string(dir.join("metrics.jsonl"))
            .unwrap()
            .lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                format!("{} {}", line["n_tokens"], line["tokens_seen"])
            })
            .collect();
        println!("{strategy} {tp}x{dp}, {accumulation} x {rows}: {found:?} {tokens:?}");
        assert_eq!(found.len(), 6);
        assert!(tokens[5].ends_with(" 1280"), "20 rows of 64 tokens");
        let (losses, counts) = reference.get_or_insert_with(|| (found.clone(), tokens.join(", ")));
        assert_eq!(&tokens.join(", "), counts);
        for (a, b) in found.iter().zip(losses.iter()) {
            assert!((a - b).abs() < 2e-5, "{strategy} {tp}x{dp}: {a} {b}");
        }
    }
}

#[test]
fn max_steps_alone_goes_through_the_data_as_often_as_it_takes() {
    let steps = |extra: &[&str]| {
        let (run, _data) = ten_documents(Run::new("fsdp", 1, 1));
        let run = run.args(["--batch_size", "4"]).args(extra);
        let output = train(&run).stdout(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let said = said + &String::from_utf8_lossy(&output.stdout);
        let line = said.lines().find(|line| line.contains("ends the run"));
        (
            losses(&run.dir()).len(),
            line.unwrap_or_default().to_owned(),
        )
    };
    let (done, said) = steps(&["--max_steps", "11"]);
    assert_eq!(done, 11);
    assert!(
        said.contains("max_steps ends the run, in epoch 4"),
        "{said}"
    );
    let (done, said) = steps(&["--max_steps", "11", "--num_epochs", "2", "--drop_last"]);
    assert_eq!(done, 4);
    assert!(
        said.contains("epoch 2 ends the run, before max_steps 11"),
        "{said}"
    );
}
