//! What saving costs a run, and how long a run takes to recover, from outside.
//!
//! `cargo xtask bench recovery [LAYERS]`: Qwen2-0.5B's sizes with LAYERS (2) layers and random weights, two workers, a save
//! every five steps. The step after the save begins has the copying of the state in it, and the writing in its background;
//! the steps before the next save have neither.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const STEPS: u64 = 18;
const EVERY: u64 = 5;
/// Micro-batches in a step: a rank of a real run has thousands of tokens a step.
const MICRO_BATCHES: u64 = 4;

fn main() -> Result<()> {
    // cargo passes --bench.
    let layers = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse::<u64>().ok())
        .unwrap_or(2);
    let folder = tempfile::tempdir()?;
    let model = model(folder.path(), layers)?;
    println!(
        "Qwen2-0.5B with {layers} layers, tp 2, {MICRO_BATCHES} x 512 tokens a step, bf16, {STEPS} steps, a save every {EVERY}"
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

/// Times of steps after a save began, and long after; and what saving costs on average.
fn show_steps(dir: &Path, asynchronous: bool) -> Result<()> {
    let text = fs::read_to_string(dir.join("metrics.jsonl"))?;
    let (mut after, mut far, mut all, mut waited) = (vec![], vec![], vec![], vec![]);
    for line in text.lines() {
        let value: Value = serde_json::from_str(line)?;
        let number = |name: &str| value[name].as_f64().unwrap_or_default();
        let (step, seconds) = (number("step") as u64, number("step_time_s"));
        // The first steps warm up, and the first save makes the memory that the others use again.
        if step <= EVERY + 1 {
            continue;
        }
        all.push(seconds);
        match step % EVERY {
            1 => {
                after.push(seconds);
                waited.push(number("saving_s"));
            }
            0 | 4 => far.push(seconds),
            _ => {}
        }
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let (after, far, waited) = (median(&mut after), median(&mut far), median(&mut waited));
    println!(
        "  --async_save {asynchronous:<5}  a step {far:.3} s; the one after a save began {after:.3} s, {:.2} x, of which training \
         waited {waited:.3} s; all steps on average {:.2} x",
        after / far,
        mean / far
    );
    Ok(())
}

/// From the kill of a worker to the first new step.
fn recovery(folder: &Path, model: &Path) -> Result<()> {
    let dir = folder.join("runs/run");
    let _ = fs::remove_dir_all(&dir);
    let mut child = train(folder, model, true, 1).spawn()?;
    let steps = || -> Vec<u64> {
        let text = fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["step"].as_u64())
            .collect()
    };
    let wait_for = |what: &dyn Fn() -> bool| -> Result<()> {
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
        .args(["--seq_length", "512", "--experiment_name", "run"])
        .args(["--gradient_accumulation_steps", &MICRO_BATCHES.to_string()])
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
fn model(folder: &Path, layers: u64) -> Result<PathBuf> {
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
