//! A place for one run, the controller in this process or in one of its own, and the questions that tests ask afterwards.

use crate::hang_up;
use crate::script::{ControllerScript, Script};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tandem_launch::controller::{
    Controller, ControllerEvent, Failure, LaunchSpec, RunEnd, RunFailure, RunState,
};

/// Ends tests that would wait for ever. No test passes or fails by how fast the machine is within it.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bench {
    folder: tempfile::TempDir,
}

/// What happened in a run inside this process.
pub struct Seen {
    pub events: Vec<ControllerEvent>,
    pub result: Result<RunEnd, RunFailure>,
}

/// A controller in a process of its own. Dropping it kills it, so that a failed test leaves nothing behind.
pub struct ControllerProcess {
    pub child: Child,
    output: BufReader<ChildStdout>,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { folder }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// The run of `num_workers` fake workers; pauses before restarts are short.
    pub fn spec(&self, num_workers: usize, script: &Script) -> LaunchSpec {
        let script = serde_json::to_string(script).expect("a script is JSON");
        let program = env!("CARGO_BIN_EXE_tandem-fake-worker");
        let mut spec = LaunchSpec::new(program, ["worker", &script], num_workers, self.run_dir());
        spec.backoff.initial = Duration::from_millis(20);
        spec
    }

    /// Runs to the end, then checks what holds for every run: no worker is left, and `run.json` tells the truth.
    pub fn run(&self, spec: &LaunchSpec) -> Seen {
        let mut events = Vec::new();
        let result = Controller::run(spec, &mut |event| events.push(event.clone()));
        let seen = Seen { events, result };
        let workers = seen.events.iter().filter_map(|event| match event {
            ControllerEvent::WorkerStarted { pid, .. } => Some(*pid),
            _ => None,
        });
        let left: Vec<_> = workers
            .filter(|pid| self.processes().contains(pid))
            .collect();
        assert_eq!(left, Vec::<u32>::new(), "workers are left");
        // What workers started was killed too, but is reaped by init, in its own time.
        self.wait_until_nobody_is_left();
        let last = seen
            .states()
            .last()
            .map(|state| format!("{state:?}").to_uppercase());
        assert_eq!(self.record()["state"].as_str(), last.as_deref());
        seen
    }

    pub fn start_controller(
        &self,
        change: impl FnOnce(&mut ControllerScript),
    ) -> ControllerProcess {
        hang_up::is_heard_by_children();
        let mut script = ControllerScript {
            run_dir: self.run_dir(),
            num_workers: 3,
            graceful_stop: true,
            stop_grace_ms: 60_000,
            max_failures: 0,
            backoff_ms: 20,
            worker: Script::endless(),
        };
        change(&mut script);
        let script = serde_json::to_string(&script).expect("a script is JSON");
        let mut child = Command::new(env!("CARGO_BIN_EXE_tandem-fake-worker"))
            .args(["controller", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the controller starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        ControllerProcess { child, output }
    }

    pub fn record(&self) -> Value {
        let text = fs::read_to_string(self.run_dir().join("run.json")).expect("run.json");
        serde_json::from_str(&text).expect("run.json is JSON")
    }

    pub fn log(&self, rank: usize) -> String {
        let path = self.run_dir().join(format!("logs/rank_{rank}.log"));
        fs::read_to_string(path).expect("a log")
    }

    /// Waits until no process has this run's folder in its environment: neither workers nor what they started.
    pub fn wait_until_nobody_is_left(&self) {
        wait_until("the workers are gone", || self.processes().is_empty());
    }

    pub fn assert_nobody_is_left(&self) {
        assert_eq!(self.processes(), Vec::<u32>::new(), "processes are left");
    }

    /// Living processes that were started for this run, zombies excluded.
    pub fn processes(&self) -> Vec<u32> {
        let variable = format!("TANDEM_RUN_DIR={}", self.run_dir().display());
        fs::read_dir("/proc")
            .expect("/proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| {
                // A zombie has an empty environment.
                let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let mut entries = environ.split(|byte| *byte == 0);
                entries.any(|entry| entry == variable.as_bytes())
            })
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in self.processes() {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // Only a test that fails has any, and it may end by itself meanwhile.
            pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

impl Drop for ControllerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Seen {
    pub fn states(&self) -> Vec<RunState> {
        let states = self.events.iter().filter_map(|event| match event {
            ControllerEvent::StateChanged { state } => Some(*state),
            _ => None,
        });
        states.collect()
    }

    pub fn restarts(&self) -> Vec<(u32, Duration)> {
        let restarts = self.events.iter().filter_map(|event| match event {
            ControllerEvent::Restarting {
                failures, delay, ..
            } => Some((*failures, *delay)),
            _ => None,
        });
        restarts.collect()
    }

    /// The failure that ended the run.
    pub fn failure(&self) -> &Failure {
        match &self.result {
            Err(RunFailure::Workers { failure, .. }) => failure,
            other => panic!("expected failed workers, found {other:?}"),
        }
    }
}

impl ControllerProcess {
    /// Reads the controller's output up to a line that contains `text`.
    pub fn read_until(&mut self, text: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let count = self.output.read_line(&mut line).expect("the output");
            assert!(count > 0, "the controller ended without saying {text}");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits until every rank has made a step: all are connected, and none is too young for what a test does next.
    pub fn wait_for_steps(&mut self, num_workers: usize) {
        let mut missing: HashSet<usize> = (0..num_workers).collect();
        while !missing.is_empty() {
            let line = self.read_until("event: Progress");
            missing.retain(|rank| !line.contains(&format!("rank: {rank}, event")));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a signal");
    }

    /// The rest of its output, its errors and its exit status.
    pub fn finish(mut self) -> (String, String, ExitStatus) {
        let (mut output, mut errors) = (String::new(), String::new());
        self.output.read_to_string(&mut output).expect("the output");
        let mut stderr = self.child.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut errors).expect("the errors");
        let status = self.child.wait().expect("the exit status");
        (output, errors, status)
    }
}

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
