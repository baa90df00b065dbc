//! What the numbers were measured on and with, to be stored beside them.

use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::workspace::Workspace;

/// This machine, now.
#[derive(Clone, Debug)]
pub struct Machine {
    /// `2026-11-24`, UTC.
    pub date: String,
    /// `231529`, UTC.
    pub time: String,
    processor: String,
    cores: usize,
    /// Processes that wanted to run over the last minute; `None` where the kernel does not tell.
    load: Option<f64>,
    /// The commit, with `+` where files have changed since.
    revision: String,
}

impl Machine {
    /// # Errors
    /// If the clock cannot be read.
    pub fn look(workspace: &Workspace) -> Result<Self> {
        let now = first_line(Command::new("date").args(["-u", "+%F %H%M%S"]))
            .context("cannot run `date`")?;
        let (date, time) = now
            .split_once(' ')
            .context("`date` printed something else than date and time")?;
        Ok(Self {
            date: date.to_owned(),
            time: time.to_owned(),
            processor: processor().unwrap_or_else(|| "unknown processor".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load: load(),
            revision: revision(workspace).unwrap_or_else(|_| "unknown".to_owned()),
        })
    }

    pub fn to_json(&self) -> Value {
        json!({
            "date": self.date,
            "time": self.time,
            "processor": self.processor,
            "cores": self.cores,
            "load_before": self.load,
            "revision": self.revision,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} cores), revision {}",
            self.processor, self.cores, self.revision
        )?;
        match self.load {
            Some(load) if load > 0.5 => write!(
                f,
                "\ncareful: other work is running (load {load:.1}); ratios mean more than times, and both are noisy"
            ),
            _ => Ok(()),
        }
    }
}

/// The processor's name and, because they decide the speed of bf16, its matrix extensions.
fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let flags = field("flags").unwrap_or_default();
    let has = |flag: &&str| flags.split(' ').any(|each| each == *flag);
    let extensions: Vec<&str> = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]
        .into_iter()
        .filter(has)
        .collect();
    Some(format!(
        "{} [{}]",
        field("model name")?,
        extensions.join(" ")
    ))
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg")
        .ok()?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

fn revision(workspace: &Workspace) -> Result<String> {
    let git = || {
        let mut command = Command::new("git");
        command.current_dir(workspace.root());
        command
    };
    let commit = first_line(git().args(["rev-parse", "--short=12", "HEAD"]))?;
    let changes = first_line(git().args(["status", "--porcelain", "--untracked-files=no"]))?;
    Ok(if changes.is_empty() {
        commit
    } else {
        commit + "+"
    })
}

fn first_line(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_pointed_out() {
        let mut machine = Machine::look(&Workspace::of_this_checkout()).unwrap();
        assert_eq!(machine.date.len(), 10);
        machine.load = Some(9.0);
        assert!(machine.to_string().contains("load 9.0"));
        machine.load = Some(0.1);
        assert!(!machine.to_string().contains("careful"));
    }
}
