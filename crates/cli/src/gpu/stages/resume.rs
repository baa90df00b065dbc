//! A run that is killed after it has saved goes on as if nothing had happened.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tandem_checkpoint::store::LocalStore;
use tandem_checkpoint::{Retention, RunDir};
use tandem_run::failure::{Failure, Outcome};

use crate::gpu::finding::Finding;
use crate::gpu::golden;
use crate::gpu::program;
use crate::gpu::stage::Context;

/// Steps between saves, and after the last.
const STEPS: u64 = 5;

/// More steps than there is time for.
const ENDLESS: u64 = 1_000_000;

/// How far a loss may be off: adding in another order, as atomic additions on a GPU do; nothing on a processor.
const ON_GPU: f64 = 2e-2;

pub(super) fn run(context: &Context) -> Outcome<Finding> {
    let runs = Runs::new(context)?;
    let log = std::fs::File::create(context.scratch.join("killed.log"));
    let mut killed = runs
        .start("killed", ENDLESS)?
        .stdout(Stdio::null())
        .stderr(log.map_err(Failure::other)?)
        .spawn()
        .map_err(Failure::other)?;
    let reached = loop {
        match saved(&runs.folder("killed")) {
            Some(step) if step >= 2 * STEPS => break Ok(step),
            _ => {}
        }
        match killed.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(50)),
            Ok(Some(status)) => {
                break Err(format!("the run ended before it was killed ({status})"));
            }
            Err(error) => break Err(error.to_string()),
        }
    };
    // Where it has ended already, this does nothing.
    let _ = killed.kill();
    killed.wait().map_err(Failure::other)?;
    if let Err(why) = reached {
        return Ok(Finding::failed(why));
    }
    // A save may have been finished between the look and the kill.
    let Some(newest) = saved(&runs.folder("killed")) else {
        return Ok(Finding::failed("the checkpoint that was there is gone"));
    };
    let last = newest + STEPS;
    let mut goes_on = runs.start("killed", last)?;
    program::output(goes_on.args(["--resume_from", "killed"]))?;
    program::output(&mut runs.start("whole", last)?)?;
    let (interrupted, whole) = (
        losses(&runs.folder("killed"))?,
        losses(&runs.folder("whole"))?,
    );
    if interrupted.len() as u64 != last || whole.len() as u64 != last {
        return Ok(Finding::failed(format!(
            "{} and {} steps are recorded, and {last} were to be done",
            interrupted.len(),
            whole.len()
        )));
    }
    let off = interrupted.iter().zip(&whole).map(|(a, b)| (a - b).abs());
    let worst = off.fold(0.0, f64::max);
    let allowed = if context.is_gpu() { ON_GPU } else { 0.0 };
    let problems = match worst <= allowed {
        true => Vec::new(),
        false => vec![format!(
            "losses differ by {worst:e}, and {allowed:e} is allowed"
        )],
    };
    Ok(Finding::without(&problems)
        .number("killed after a save at step", newest as f64, "")
        .number("losses differ by at most", worst, "")
        .number("last loss", whole[whole.len() - 1], ""))
}

/// Runs that differ in name and length.
struct Runs<'a> {
    context: &'a Context,
    model: PathBuf,
    data: PathBuf,
}

impl<'a> Runs<'a> {
    fn new(context: &'a Context) -> Outcome<Self> {
        let (model, data) = golden::unpack_demo(&context.scratch)?;
        Ok(Self {
            context,
            model,
            data,
        })
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.context.scratch.join(name)
    }

    fn start(&self, name: &str, steps: u64) -> Outcome<Command> {
        let (steps, every) = (steps.to_string(), STEPS.to_string());
        let mut command = program::own([
            "train_fsdp",
            "--init",
            "random",
            "--dtype",
            "fp32",
            "--device",
            self.context.device_name,
            "--tp_size",
            "1",
            "--num_workers",
            "1",
            "--seq_length",
            "64",
            "--dataset_percentage",
            "100",
            "--experiment_name",
            name,
            "--max_steps",
            &steps,
            "--save_steps",
            &every,
            "--num_to_keep",
            "2",
        ])?;
        command
            .arg("--model_name")
            .arg(&self.model)
            .arg("--dataset_name")
            .arg(&self.data)
            .arg("--storage_path")
            .arg(&self.context.scratch);
        Ok(command)
    }
}

/// The step of the newest checkpoint, where there is one that can be read now: a run is writing.
fn saved(folder: &Path) -> Option<u64> {
    if !folder.is_dir() {
        return None;
    }
    let run = RunDir::open(Arc::new(LocalStore::new(folder)), Retention::default()).ok()?;
    run.latest().map(|entry| entry.global_step)
}

/// A line of the metrics.
#[derive(Deserialize)]
struct Step {
    loss: f64,
}

fn losses(folder: &Path) -> Outcome<Vec<f64>> {
    let path = folder.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Failure::other(format!("cannot read {}: {error}", path.display())))?;
    let lines = text.lines().map(serde_json::from_str::<Step>);
    let steps = lines
        .collect::<Result<Vec<_>, _>>()
        .map_err(Failure::other)?;
    Ok(steps.iter().map(|step| step.loss).collect())
}
