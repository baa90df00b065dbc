//! `cargo xtask bench ray`: one command under the local controller and on a Ray cluster of this machine, in turns.
//!
//! What is measured is what a user waits for: from the command to the first step, each step, and from the last step to the
//! end of the command. The cluster is there already when a command starts, as it would be for a user.

mod cluster;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;

use self::cluster::Cluster;
use crate::python_environment;
use crate::setup;
use crate::workspace::Workspace;

const USAGE: &str = "\
Usage: cargo xtask bench ray [--turns N] [--steps N]

  --turns N    runs of each kind, in turns (3)
  --steps N    steps of each run (60)
";

/// Steps at the beginning that do not count: caches fill, memory is allocated.
const WARM_UP: usize = 5;

struct Options {
    turns: usize,
    steps: usize,
}

/// How long a run took, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measurement {
    first_step: f64,
    /// The median over the steps after the warm-up.
    step: f64,
    after_last_step: f64,
}

/// Measures and prints a table.
pub fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    let Some(options) = parse(lexopt::Parser::from_args(arguments))? else {
        print!("{USAGE}");
        return Ok(());
    };
    let libtorch = setup::run(workspace, &setup::Request::default())?;
    workspace.build_release()?;
    let environment = python_environment::prepare(workspace)?;
    let folder = workspace.target_dir()?.join("bench-ray");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .context("cannot empty the folder of the last benchmark")?;
    }
    std::fs::create_dir_all(&folder)?;
    let package = workspace.root().join("python");
    let cluster = Cluster::start(&environment, &package, &libtorch, &folder)?;
    let ray = vec![
        "--cluster=ray".to_owned(),
        format!("--ray_address={}", cluster.address()),
        "--resources_per_worker=CPU=0.5".to_owned(),
    ];
    let mut local = Vec::new();
    let mut on_ray = Vec::new();
    for turn in 1..=options.turns {
        for (name, extra, results) in [
            ("local", &Vec::new(), &mut local),
            ("ray", &ray, &mut on_ray),
        ] {
            let storage = folder.join(format!("{name}-{turn}"));
            let mut command = command(workspace, &environment, &storage, options.steps, extra)?;
            libtorch.give_to(&mut command);
            let measured = measure(command, &storage, options.steps)?;
            println!("turn {turn}, {name}: {measured:.4?}");
            results.push(measured);
        }
    }
    print!("\n{}", table(&local, &on_ray));
    Ok(())
}

fn parse(mut arguments: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        turns: 3,
        steps: 60,
    };
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("turns") => options.turns = arguments.value()?.parse()?,
            Long("steps") => options.steps = arguments.value()?.parse()?,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    if options.turns == 0 || options.steps <= WARM_UP {
        return Err(format!("at least 1 turn and {} steps", WARM_UP + 1).into());
    }
    Ok(Some(options))
}

/// Two workers, one for each core of a small machine, so that what is measured is not a lack of cores.
fn command(
    workspace: &Workspace,
    environment: &Path,
    storage: &Path,
    steps: usize,
    extra: &[String],
) -> Result<Command> {
    let demo = workspace.root().join("demo");
    let mut command = Command::new(workspace.release_binary("train_fsdp")?);
    command
        .arg("--model_name")
        .arg(demo.join("model"))
        .arg("--dataset_name")
        .arg(demo.join("data"))
        .arg("--storage_path")
        .arg(storage)
        .args(["--init", "random", "--device", "cpu", "--dtype", "fp32"])
        .args(["--seq_length", "128", "--batch_size", "4"])
        .args(["--tp_size", "2", "--dp_size", "1", "--num_workers", "2"])
        .args([
            "--experiment_name",
            "run",
            "--max_steps",
            &steps.to_string(),
        ])
        .args(extra)
        .env("TANDEM_PYTHON", environment.join("bin/python"))
        .env("PYTHONPATH", workspace.root().join("python"))
        .env("RAY_USAGE_STATS_ENABLED", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Ok(command)
}

fn measure(mut command: Command, storage: &Path, steps: usize) -> Result<Measurement> {
    std::fs::create_dir_all(storage)?;
    let log = std::fs::File::create(storage.join("log"))?;
    let metrics = storage.join("run/metrics.jsonl");
    let start = Instant::now();
    let mut child = command
        .stderr(log)
        .spawn()
        .context("cannot start train_fsdp")?;
    let mut first_step = None;
    let mut last_step = None;
    let status = loop {
        let status = child.try_wait()?;
        let done = lines(&metrics);
        if done >= 1 && first_step.is_none() {
            first_step = Some(start.elapsed());
        }
        if done >= steps && last_step.is_none() {
            last_step = Some(start.elapsed());
        }
        match status {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let end = start.elapsed();
    let (Some(first_step), Some(last_step), true) = (first_step, last_step, status.success())
    else {
        bail!(
            "the run failed ({status}); see {}",
            storage.join("log").display()
        );
    };
    Ok(Measurement {
        first_step: first_step.as_secs_f64(),
        step: median(step_times(&metrics)?.split_off(WARM_UP)),
        after_last_step: (end - last_step).as_secs_f64(),
    })
}

fn lines(path: &PathBuf) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

fn step_times(metrics: &Path) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(metrics)?;
    let times: Option<Vec<f64>> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["step_time_s"].as_f64())
        .collect();
    let times = times.context("metrics.jsonl has a line without step_time_s")?;
    ensure!(times.len() > WARM_UP, "only {} steps", times.len());
    Ok(times)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(local: &[Measurement], ray: &[Measurement]) -> String {
    let row = |name: &str, of: fn(&Measurement) -> f64| {
        let shown = |runs: &[Measurement]| {
            let values: Vec<f64> = runs.iter().map(of).collect();
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            format!("{:.4} ({least:.4} to {most:.4})", median(values))
        };
        format!("{name:<28} {:>30} {:>30}\n", shown(local), shown(ray))
    };
    [
        format!(
            "{:<28} {:>30} {:>30}\n",
            "seconds: median (range)", "local", "Ray"
        ),
        row("command to first step", |run| run.first_step),
        row("a step", |run| run.step),
        row("last step to end of command", |run| run.after_last_step),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_medians_and_ranges() {
        let run = |first_step| Measurement {
            first_step,
            step: 0.05,
            after_last_step: 1.0,
        };
        let text = table(&[run(3.0), run(1.0), run(2.0)], &[run(9.0)]);
        assert!(text.contains("2.0000 (1.0000 to 3.0000)"), "{text}");
        assert!(text.contains("9.0000 (9.0000 to 9.0000)"), "{text}");
    }

    #[test]
    fn options_are_checked() {
        let parsed = |arguments: &[&str]| parse(lexopt::Parser::from_args(arguments));
        assert!(parsed(&["--turns", "0"]).is_err());
        assert!(parsed(&["--steps", "5"]).is_err());
        let options = parsed(&["--steps", "9"]).expect("good").expect("not help");
        assert_eq!((options.turns, options.steps), (3, 9));
    }
}
