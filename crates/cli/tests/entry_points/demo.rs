//! Short runs of the demo model, shared by the tests of the command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::hang_up;

/// A command line in the making, with a storage folder of its own.
pub struct Run {
    pub storage: tempfile::TempDir,
    program: &'static str,
    args: Vec<String>,
}

const NAME: &str = "run";

pub fn demo(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../demo")
        .join(path);
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

impl Run {
    /// Random weights of the demo model on the demo text, in rows of 64 tokens.
    pub fn new(strategy: &str, tp: usize, dp: usize) -> Self {
        let storage = tempfile::tempdir().unwrap();
        let program = match strategy {
            "fsdp" => env!("CARGO_BIN_EXE_train_fsdp"),
            _ => env!("CARGO_BIN_EXE_train_deepspeed"),
        };
        let mut run = Self {
            program,
            args: Vec::new(),
            storage,
        };
        let storage = run.storage.path().to_str().unwrap().to_owned();
        for (flag, value) in [
            ("--model_name", demo("model")),
            ("--dataset_name", demo("data")),
            ("--storage_path", storage),
            ("--experiment_name", NAME.to_owned()),
            ("--init", "random".to_owned()),
            ("--device", "cpu".to_owned()),
            ("--seq_length", "64".to_owned()),
            ("--dataset_percentage", "10".to_owned()),
            ("--tp_size", tp.to_string()),
            ("--dp_size", dp.to_string()),
            ("--num_workers", (tp * dp).to_string()),
        ] {
            run.args.extend([flag.to_owned(), value]);
        }
        run
    }

    /// Adds flags; a flag that is there already gets the new value.
    pub fn args<S: AsRef<str>>(mut self, more: impl IntoIterator<Item = S>) -> Self {
        for arg in more {
            let arg = arg.as_ref().to_owned();
            if arg.starts_with("--")
                && let Some(at) = self.args.iter().position(|a| *a == arg)
            {
                self.args.drain(at..at + 2);
            }
            self.args.push(arg);
        }
        self
    }

    /// These flags and no others.
    pub fn only<S: Into<String>>(self, args: impl IntoIterator<Item = S>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self { args, ..self }
    }

    /// The same flags for the other program.
    pub fn for_deepspeed(self) -> Self {
        let program = env!("CARGO_BIN_EXE_train_deepspeed");
        Self { program, ..self }
    }

    pub fn dir(&self) -> PathBuf {
        self.storage.path().join(NAME)
    }

    /// Runs to the end, which must be good, and returns the run's folder.
    pub fn succeed(&self) -> PathBuf {
        let output = train(self).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {text}", self.args);
        self.dir()
    }

    /// Runs to the end, which must be bad; returns exit code and messages.
    pub fn fail(&self) -> (Option<i32>, String) {
        let output = train(self).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("exit {:?}: {text}", output.status.code());
        assert!(!output.status.success(), "{:?} succeeded", self.args);
        (output.status.code(), text)
    }

    /// Blocks until the run has finished that many steps.
    pub fn wait_for_steps(&self, steps: usize) {
        let metrics = self.dir().join("metrics.jsonl");
        let lines = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
        wait_until("the steps are done", || lines() >= steps);
    }
}

/// Blocks until something holds, which must be soon.
pub fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "not within a minute: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn train(run: &Run) -> Command {
    hang_up::is_heard_by_children();
    let mut command = Command::new(run.program);
    command
        .args(&run.args)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Loss of every step.
pub fn losses(run_dir: &Path) -> Vec<f64> {
    metrics(run_dir)
        .iter()
        .filter(|line| line.get("eval_loss").is_none())
        .map(|line| line["loss"].as_f64().unwrap())
        .collect()
}

/// All lines of the metrics.
pub fn metrics(run_dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap();
    let parsed = text.lines().map(serde_json::from_str);
    parsed.collect::<Result<_, _>>().unwrap()
}

/// Rank and process id of a controller's workers.
pub fn workers_of(controller: u32) -> Vec<(usize, u32)> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let (_, parent) = state_and_parent(pid)?;
            let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            let rank = environ.split(|b| *b == 0).find_map(|v| {
                std::str::from_utf8(v)
                    .ok()?
                    .strip_prefix("RANK=")?
                    .parse()
                    .ok()
            })?;
            (parent == controller).then_some((rank, pid))
        })
        .collect()
}

pub fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill")
        .args([OsStr::new("-s"), OsStr::new(signal)])
        .arg(pid.to_string())
        .status();
    assert!(status.unwrap().success());
}

/// Exit code and messages of a child that must end in time.
pub fn output_within(child: &mut Child, limit: Duration) -> (Option<i32>, String) {
    use std::io::Read;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            panic!("still running after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut text = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut text).unwrap();
    }
    (status.code(), text)
}

pub fn assert_gone(workers: &[(usize, u32)]) {
    for (rank, pid) in workers {
        assert!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "rank {rank} (process {pid}) is still there"
        );
    }
}

/// As [`assert_gone`], for processes that may need a moment. What is dead and waits for init to take note of it is gone.
pub fn assert_gone_soon(workers: &[(usize, u32)], limit: Duration) {
    let start = Instant::now();
    loop {
        let left: Vec<_> = workers
            .iter()
            .filter_map(|(rank, pid)| Some((rank, pid, state_and_parent(*pid)?.0)))
            .filter(|(_, _, state)| *state != 'Z')
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(
            start.elapsed() < limit,
            "still there after {limit:?} (rank, process, state): {left:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the kernel says a process is doing (`proc_pid_stat(5)`: `R`, `S`, `D` while it waits for a disk, ...), and its parent.
fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}
