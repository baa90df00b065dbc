//! `cargo xtask demo`: the same small model trained on real text with both strategies, on four workers.
//!
//! Both runs start from the same random weights and see the same batches, so their losses must agree up to rounding:
//! what the demo shows is that they fall, and that two different ways to shard the training compute the same thing.

mod chart;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::metrics::Metrics;
use crate::setup::{self, Libtorch};
use crate::workspace::Workspace;

const TP_SIZE: usize = 2;
const DP_SIZE: usize = 2;
/// Rows per data-parallel rank and step.
const BATCH_SIZE: usize = 2;
const SEQ_LENGTH: usize = 128;
/// Enough to see the loss fall, few enough for a minute or two on two cores.
pub const DEFAULT_STEPS: usize = 80;

/// The two runs may differ by rounding, which training amplifies; by far less than this in so few steps.
const LOSS_TOLERANCE: f64 = 1e-2;

/// One way to train: an entry point and the options that only it has.
struct Strategy {
    /// What the run and its line in the table are called.
    name: &'static str,
    binary: &'static str,
    options: &'static [&'static str],
}

const STRATEGIES: [Strategy; 2] = [
    Strategy {
        name: "fsdp",
        binary: "train_fsdp",
        options: &["--autocast", "false"],
    },
    Strategy {
        name: "deepspeed",
        binary: "train_deepspeed",
        options: &["--zero_stage", "1"],
    },
];

/// Builds, trains with both strategies for `steps` optimizer steps, and shows how it went. Errors if a run fails, if
/// the loss does not fall or if the strategies disagree.
pub fn run(workspace: &Workspace, steps: usize) -> Result<()> {
    let libtorch = setup::run(workspace, &setup::Request::default())?;
    // Not the release build: what is shown here is what training computes. Libraries are optimised all the same.
    workspace.build_for_tests()?;

    let storage = workspace.target_dir()?.join("demo");
    match fs::remove_dir_all(&storage) {
        // A run of the same name would be continued.
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", storage.display()));
        }
        _ => {}
    }
    let start = Instant::now();
    for strategy in &STRATEGIES {
        train(workspace, &libtorch, strategy, &storage, steps)?;
    }
    let elapsed = start.elapsed();

    let mut runs = Vec::new();
    for strategy in &STRATEGIES {
        let path = storage.join(strategy.name).join("metrics.jsonl");
        runs.push((strategy.name, Metrics::read(&path)?));
    }
    print!("{}", report(&runs));
    println!(
        "\n{steps} steps with each strategy in {:.0} s; metrics in {}",
        elapsed.as_secs_f64(),
        storage.display()
    );
    judge(&runs)
}

fn train(
    workspace: &Workspace,
    libtorch: &Libtorch,
    strategy: &Strategy,
    storage: &Path,
    steps: usize,
) -> Result<()> {
    let mut command = Command::new(workspace.tested_binary(strategy.binary)?);
    libtorch.give_to(&mut command);
    let number = |number: usize| number.to_string();
    command
        .current_dir(workspace.root())
        .args(["--model_name", "demo/model", "--init", "random"])
        .args(["--dataset_name", "demo/data"])
        .args(["--tp_size", &number(TP_SIZE), "--dp_size", &number(DP_SIZE)])
        .args(["--num_workers", &number(TP_SIZE * DP_SIZE)])
        .args(["--batch_size", &number(BATCH_SIZE)])
        .args(["--seq_length", &number(SEQ_LENGTH)])
        .args(["--max_steps", &number(steps)])
        // fp32, so that what remains between the strategies is rounding at its smallest.
        .args(["--learning_rate", "1e-3", "--dtype", "fp32", "--seed", "0"])
        .args(["--log_interval", "10"])
        .args(["--experiment_name", strategy.name, "--storage_path"])
        .arg(storage)
        .arg("--loss_output_dir")
        .arg(storage.join(strategy.name))
        .args(strategy.options);
    println!("\n== {}", strategy.binary);
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", strategy.binary))?;
    if !status.success() {
        bail!("{} failed ({status})", strategy.binary);
    }
    Ok(())
}

/// The mesh, the table of runs and the loss chart.
fn report(runs: &[(&str, Metrics)]) -> String {
    let mut text = format!(
        "\nmesh: tp {TP_SIZE} x dp {DP_SIZE}, {} workers\n",
        TP_SIZE * DP_SIZE
    );
    for dp in 0..DP_SIZE {
        let ranks: Vec<_> = (0..TP_SIZE)
            .map(|tp| format!("rank {}", dp * TP_SIZE + tp))
            .collect();
        text += &format!("  dp {dp}: {}\n", ranks.join("  "));
    }
    text += &format!(
        "\n{:<11} {:>12} {:>12} {:>10}   peak memory per worker, MB\n",
        "strategy", "first loss", "last loss", "tokens/s"
    );
    for (name, metrics) in runs {
        let memory: Vec<_> = metrics
            .peak_memory_mb()
            .iter()
            .map(|megabytes| format!("{megabytes:.0}"))
            .collect();
        text += &format!(
            "{name:<11} {:>12.4} {:>12.4} {:>10.0}   {}\n",
            metrics.first_loss(),
            metrics.last_loss(),
            metrics.tokens_per_s(),
            memory.join(", ")
        );
    }
    if let [(_, one), (_, other)] = runs {
        let (step, difference) = one.largest_difference(other);
        text +=
            &format!("largest difference between their losses: {difference:.1e}, at step {step}\n");
    }
    let curves: Vec<_> = runs
        .iter()
        .map(|(name, metrics)| (*name, metrics.losses()))
        .collect();
    text + "\n" + &chart::draw(&curves)
}

/// Errors if what the demo is there to show is not so.
fn judge(runs: &[(&str, Metrics)]) -> Result<()> {
    for (name, metrics) in runs {
        if metrics.last_loss() >= metrics.first_loss() {
            bail!("the loss of {name} did not fall");
        }
    }
    if let [(one_name, one), (other_name, other)] = runs {
        let (step, difference) = one.largest_difference(other);
        if difference > LOSS_TOLERANCE {
            bail!(
                "the losses of {one_name} and {other_name} differ by {difference:.1e} at step {step}, more than the \
                 {LOSS_TOLERANCE} that rounding could explain"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_of(losses: &[f64]) -> Metrics {
        let text: String = losses
            .iter()
            .zip(1..)
            .map(|(loss, step)| {
                format!(
                    "{{\"step\":{step},\"loss\":{loss},\"tokens_per_s\":900.0,\"peak_memory_mb\":[100.4,99.6]}}\n"
                )
            })
            .collect();
        Metrics::parse(&text).expect("well-formed")
    }

    #[test]
    fn the_report_shows_what_was_asked_for() {
        let runs = [
            ("fsdp", run_of(&[8.5, 7.0, 6.25])),
            ("deepspeed", run_of(&[8.5, 7.001, 6.25])),
        ];
        let text = report(&runs);
        for part in [
            "tp 2 x dp 2, 4 workers",
            "dp 1: rank 2  rank 3",
            "8.5000       6.2500        900   100, 100",
            "1.0e-3, at step 2",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        judge(&runs).expect("falling and alike");
    }

    #[test]
    fn a_loss_that_does_not_fall_and_strategies_that_differ_are_failures() {
        let flat = [("fsdp", run_of(&[8.0, 8.0]))];
        let error = judge(&flat).expect_err("not falling");
        assert!(error.to_string().contains("did not fall"), "{error}");
        let apart = [
            ("fsdp", run_of(&[8.0, 6.0])),
            ("deepspeed", run_of(&[8.0, 6.1])),
        ];
        let error = judge(&apart).expect_err("not alike");
        assert!(error.to_string().contains("at step 2"), "{error}");
    }
}
