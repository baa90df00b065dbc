//! `cargo xtask bench plan`: what `tandem plan` says of memory and time, beside what whole training steps on this machine take.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;
use serde_json::Value;

use crate::setup::{self, Libtorch};
use crate::workspace::Workspace;

const USAGE: &str = "\
Usage: cargo xtask bench plan [--config NAME]... [--steps N] [--memory] [--binary FILE]

  --config NAME   only this configuration; may be repeated
  --steps N       steps that count (5; 2 with --memory)
  --memory        memory alone, without measuring the machine's rates
  --binary FILE   measure this build of `tandem` instead of making one
";

/// A configuration: its name, and the flags of `tandem bench step`.
type Configuration = (&'static str, &'static str);

/// Two models with 2 and 24 layers, all levels, all that recomputing can be, sequence parallelism, adapters, and experts.
const CONFIGURATIONS: [Configuration; 15] = [
    ("tp2", "--model qwen2 --layers 2 --tp_size 2"),
    (
        "dp2-fsdp",
        "--model qwen2 --layers 2 --tp_size 1 --dp_size 2",
    ),
    (
        "dp2-zero0",
        "--model qwen2 --layers 2 --tp_size 1 --dp_size 2 --strategy deepspeed --zero_stage 0",
    ),
    (
        "dp2-zero1",
        "--model qwen2 --layers 2 --tp_size 1 --dp_size 2 --strategy deepspeed --zero_stage 1",
    ),
    (
        "dp2-zero2",
        "--model smollm2 --layers 24 --tp_size 1 --dp_size 2 --strategy deepspeed --zero_stage 2",
    ),
    (
        "tp2-dp2",
        "--model qwen2 --layers 2 --tp_size 2 --dp_size 2 --seq 1024 --batch 2",
    ),
    (
        "none",
        "--model smollm2 --layers 24 --tp_size 2 --seq 1024 --batch 2 --recompute none",
    ),
    (
        "light-sp",
        "--model smollm2 --layers 24 --tp_size 2 --seq 1024 --batch 2 --sequence_parallel",
    ),
    (
        "full-sp",
        "--model smollm2 --layers 24 --tp_size 2 --seq 1024 --batch 2 --recompute full --sequence_parallel",
    ),
    ("deep-tp2", "--model qwen2 --layers 24 --tp_size 2"),
    (
        "deep-lora",
        "--model qwen2 --layers 24 --tp_size 1 --lora_r 16",
    ),
    (
        "experts-tp2",
        "--model qwen3-moe-narrow --layers 2 --tp_size 2 --batch 2",
    ),
    (
        "deep-experts",
        "--model qwen3-moe-narrow --layers 24 --tp_size 1 --dp_size 2",
    ),
    (
        "experts-ep2",
        "--model qwen3-moe-narrow --layers 2 --tp_size 2 --batch 2 --expert_parallel_size 2",
    ),
    (
        "deep-experts-ep2",
        "--model qwen3-moe-narrow --layers 24 --tp_size 1 --dp_size 2 --expert_parallel_size 2",
    ),
];

struct Options {
    configurations: Vec<Configuration>,
    /// `None`: as many as it takes.
    steps: Option<usize>,
    memory_only: bool,
    binary: Option<PathBuf>,
}

impl Options {
    fn steps(&self) -> usize {
        // A peak is there after the second.
        let usual = if self.memory_only { 2 } else { 5 };
        self.steps.unwrap_or(usual)
    }
}

/// Of one configuration: what was said, and what was.
struct Held {
    name: &'static str,
    memory_mb: [f64; 2],
    step_s: Option<[f64; 2]>,
}

/// Measures all configurations and prints a table.
pub fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    let Some(options) = parse(lexopt::Parser::from_args(arguments))? else {
        print!("{USAGE}");
        return Ok(());
    };
    let libtorch = setup::run(workspace, &setup::Request::default())?;
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            workspace.build_release()?;
            workspace.release_binary("tandem")?
        }
    };
    let tandem = |words: &[&str]| tandem(&binary, &libtorch, words);
    let folder = workspace.target_dir()?.join("bench-plan");
    std::fs::create_dir_all(&folder)?;
    let device_file = |ranks: usize| -> Result<PathBuf> {
        let path = folder.join(format!("device-{ranks}.json"));
        let measured = tandem(&["plan", "--measure", "--devices", &ranks.to_string()])?;
        std::fs::write(&path, measured)?;
        Ok(path)
    };
    let mut held = Vec::new();
    for (name, flags) in &options.configurations {
        let words: Vec<&str> = flags.split_whitespace().collect();
        let mut line = vec!["bench", "step", "--json"];
        line.extend(&words);
        let steps = options.steps().to_string();
        line.extend(["--steps", &steps]);
        let path;
        if !options.memory_only {
            // Right before the steps: the machine may be another in an hour.
            path = device_file(ranks(&words))?;
            line.extend(["--device_file", text(&path)?]);
        }
        let json = tandem(&line)?;
        let one = Held::of(name, &json).with_context(|| format!("{name}: {json}"))?;
        println!("{}", one.row());
        held.push(one);
    }
    println!("\n{HEAD}");
    for one in &held {
        println!("{}", one.row());
    }
    let off = held.iter().filter(|it| it.is_off()).count();
    ensure!(
        off == 0,
        "{off} of {} predictions are off by more than they may be: 10 % of memory, 20 % of time",
        held.len()
    );
    Ok(())
}

const HEAD: &str = "\
| configuration | memory planned, MB | measured | ratio | step planned, s | measured | ratio |
|---|---|---|---|---|---|---|";

impl Held {
    fn of(name: &'static str, json: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(json.trim())?;
        let number = |key: &str| {
            json[key]
                .as_f64()
                .with_context(|| format!("it lacks {key}"))
        };
        let peaks = json["peak_memory_mb"]
            .as_array()
            .context("it lacks peaks")?;
        let peak = peaks.iter().filter_map(Value::as_f64).fold(0.0, f64::max);
        Ok(Self {
            name,
            memory_mb: [number("planned_memory_mb")?, peak],
            step_s: match json["planned_step_s"].as_f64() {
                Some(planned) => Some([planned, number("step_time_s")?]),
                None => None,
            },
        })
    }

    fn row(&self) -> String {
        let [planned, peak] = self.memory_mb;
        let time = match self.step_s {
            Some([planned, took]) => {
                format!("{planned:.2} | {took:.2} | {:.2}", planned / took)
            }
            None => "- | - | -".to_owned(),
        };
        format!(
            "| {} | {planned:.0} | {peak:.0} | {:.2} | {time} |",
            self.name,
            planned / peak
        )
    }

    fn is_off(&self) -> bool {
        let beyond =
            |[planned, measured]: [f64; 2], most: f64| (planned / measured - 1.0).abs() > most;
        beyond(self.memory_mb, 0.1) || self.step_s.is_some_and(|times| beyond(times, 0.2))
    }
}

/// Ranks of a configuration.
fn ranks(words: &[&str]) -> usize {
    let number = |flag: &str| {
        let place = words.iter().position(|word| *word == flag);
        place.and_then(|place| words.get(place + 1)?.parse().ok())
    };
    number("--tp_size").unwrap_or(1) * number("--dp_size").unwrap_or(1)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the target folder's name is no text")
}

/// What a command of `tandem` prints.
fn tandem(binary: &Path, libtorch: &Libtorch, words: &[&str]) -> Result<String> {
    let mut command = Command::new(binary);
    libtorch.give_to(&mut command);
    let output = command
        .args(words)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    if !output.status.success() {
        bail!("`tandem {}` failed ({})", words.join(" "), output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn parse(mut parser: lexopt::Parser) -> Result<Option<Options>> {
    let mut options = Options {
        configurations: Vec::new(),
        steps: None,
        memory_only: false,
        binary: None,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") => return Ok(None),
            Long("steps") => options.steps = Some(parser.value()?.parse()?),
            Long("memory") => options.memory_only = true,
            Long("binary") => options.binary = Some(parser.value()?.into()),
            Long("config") => {
                let name: String = parser.value()?.parse()?;
                let found = CONFIGURATIONS.iter().find(|(its, _)| *its == name);
                let known = CONFIGURATIONS.map(|(name, _)| name).join(", ");
                let found = found.with_context(|| format!("--config {name}: there are {known}"))?;
                options.configurations.push(*found);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(options.steps() > 0, "--steps is 0");
    if options.configurations.is_empty() {
        options.configurations = CONFIGURATIONS.to_vec();
    }
    Ok(Some(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_that_is_off_is_noticed() {
        let held = |planned: f64, step: &str| {
            let json = format!(
                "{{\"planned_memory_mb\":{planned},\"peak_memory_mb\":[90,100],\"step_time_s\":1.0{step}}}"
            );
            Held::of("x", &json).expect("complete")
        };
        assert!(!held(109.0, "").is_off() && held(111.0, "").is_off() && held(89.0, "").is_off());
        assert!(!held(100.0, ",\"planned_step_s\":1.19").is_off());
        assert!(held(100.0, ",\"planned_step_s\":0.79").is_off());
        assert_eq!(held(95.0, "").row(), "| x | 95 | 100 | 0.95 | - | - | - |");
        assert!(Held::of("x", "{}").is_err());
    }

    #[test]
    fn memory_alone_takes_two_steps_unless_more_are_asked_for() {
        for (words, steps) in [
            (&[][..], 5),
            (&["--memory"][..], 2),
            (&["--memory", "--steps", "3"][..], 3),
        ] {
            let parsed = parse(lexopt::Parser::from_args(words)).expect("good");
            assert_eq!(parsed.expect("no help").steps(), steps, "{words:?}");
        }
        assert!(parse(lexopt::Parser::from_args(["--steps", "0"])).is_err());
    }

    #[test]
    fn ranks_are_those_of_the_flags() {
        for (name, flags) in CONFIGURATIONS {
            let words: Vec<&str> = flags.split_whitespace().collect();
            let expected = if name == "tp2-dp2" {
                4
            } else if name == "deep-lora" {
                1
            } else {
                2
            };
            assert_eq!(ranks(&words), expected, "{name}");
        }
    }
}
