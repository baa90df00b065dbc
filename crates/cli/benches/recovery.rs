//! What saving costs a run, and how long a run takes to recover, from outside.
//!
//! `cargo xtask bench recovery [LAYERS]`: Qwen2-0.5B's sizes with LAYERS (2) layers and random weights, two workers, a save
//! every four steps. A step counts as one with a save if a save began right before it or was still under way.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

const STEPS: u64 = 24;
const EVERY: u64 = 4;

fn main() -> Outcome<()> {
    // cargo passes --bench.
    let layers = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse::<u64>().ok())
        .unwrap_or(2);
    let folder = tempfile::tempdir()?;
    let model = model(folder.path(), layers)?;
    println!(
        "Qwen2-0.5B with {layers} layers, seq 256, tp 2, bf16, {STEPS} steps, a save every {EVERY}"
    );
    for asynchronous in [true, false, true, false] {
        let dir = folder.path().join("runs/run");
        let _ = fs::remove_dir_all(&dir);
        let mut child = train(folder.path(), &model, asynchronous, 0).spawn()?;
        if !child.wait()?.success() {
            return Err("the run failed".into());
        }
        show_steps(&dir, asynchronous)?;
    }
    recovery(folder.path(), &model)
}

/// Median time of steps with and without a save.
fn show_steps(dir: &Path, asynchronous: bool) -> Outcome<()> {
    let text = fs::read_to_string(dir.join("metrics.jsonl"))?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let value: Value = serde_json::from_str(line)?;
        let step = value["step"].as_u64().unwrap_or_default();
        let seconds = value["step_time_s"].as_f64().unwrap_or_default();
        // The first steps also warm up.
        match step {
            0..=3 => {}
            _ if (step - 1).is_multiple_of(EVERY) && step > EVERY => with.push(seconds),
            _ if (step - 1) % EVERY == EVERY - 1 => without.push(seconds),
            // A save may or may not be under way.
            _ => {}
        }
    }
    let (with, without) = (median(&mut with), median(&mut without));
    println!(
        "  --async_save {asynchronous:<5}  a step {without:.3} s, the step after a save begins {with:.3} s, ratio {:.2}",
        with / without
    );
    Ok(())
}

/// From the kill of a worker to the first new step.
fn recovery(folder: &Path, model: &Path) -> Outcome<()> {
    let dir = folder.join("runs/run");
    let _ = fs::remove_dir_all(&dir);
    let mut child = train(folder, model, true, 1).spawn()?;
    let steps = || -> Vec<u64> {
        let text = fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["step"].as_u64())
            .collect()
    };
    let wait_for = |what: &dyn Fn() -> bool| -> Outcome<()> {
        let start = Instant::now();
        while !what() {
            if start.elapsed() > Duration::from_secs(600) {
                return Err("the run makes no progress".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    };
    wait_for(&|| steps().len() as u64 >= EVERY + 3)?;
    let run: Value = serde_json::from_slice(&fs::read(dir.join("run.json"))?)?;
    let pid = run["attempts"][0]["workers"][1]["pid"]
        .as_u64()
        .ok_or("run.json names no worker")?;
    let before = steps().len();
    let killed = Instant::now();
    Command::new("kill")
        .args(["-s", "KILL", &pid.to_string()])
        .status()?;
    // Metrics after the checkpoint are dropped when the run starts again; then they grow.
    wait_for(&|| steps().len() < before)?;
    let cut = steps().len();
    println!(
        "  {:.2} s from the kill to the checkpoint's state",
        killed.elapsed().as_secs_f64()
    );
    wait_for(&|| steps().len() > cut)?;
    println!(
        "  {:.2} s from the kill to the end of the first new step",
        killed.elapsed().as_secs_f64()
    );
    Command::new("kill")
        .args(["-s", "KILL", &child.id().to_string()])
        .status()?;
    child.wait()?;
    Ok(())
}

fn train(folder: &Path, model: &Path, asynchronous: bool, max_failures: u64) -> Command {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_train_fsdp"));
    command
        .args(["--tp_size", "2", "--num_workers", "2", "--init", "random"])
        .args(["--seq_length", "256", "--experiment_name", "run"])
        .args(["--async_save", &asynchronous.to_string()])
        .args(["--save_steps", &EVERY.to_string(), "--num_to_keep", "1"])
        .args(["--max_steps", &STEPS.to_string()])
        .args(["--max_failures", &max_failures.to_string()])
        .arg("--model_name")
        .arg(model)
        .arg("--dataset_name")
        .arg(demo.join("data"))
        .arg("--storage_path")
        .arg(folder.join("runs"))
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The sizes of Qwen2-0.5B, with the demo's tokenizer.
fn model(folder: &Path, layers: u64) -> Outcome<PathBuf> {
    let model = folder.join("model");
    fs::create_dir(&model)?;
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/model");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(demo.join(file), model.join(file))?;
    }
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "num_attention_heads": 14,
        "num_key_value_heads": 2, "num_hidden_layers": layers, "intermediate_size": 4864,
        "vocab_size": 151_936, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": true, "initializer_range": 0.02
    });
    fs::write(model.join("config.json"), config.to_string())?;
    Ok(model)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
