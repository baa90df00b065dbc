//! A worker that trains nothing, and a controller around it, for the tests of this crate.
//!
//! `tandem-fake-worker worker SCRIPT`, `tandem-fake-worker controller SCRIPT`, the scripts in JSON, and
//! `tandem-fake-worker alone`, which waits for a signal as a worker of another launcher does, and `tandem-fake-worker limits`,
//! which looks whether it may have so many threads and descriptors where its user may have so many processes.

mod script;

use rustix::process::{Resource, Rlimit, setrlimit};
use script::{ControllerScript, FaultKind, Script};
use std::error::Error;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tandem_launch::client::ControlClient;
use tandem_launch::controller::{Controller, LaunchSpec};
use tandem_launch::env::{ATTEMPT, RUN_DIR, WorkerEnv, process_environment};
use tandem_launch::exit_code;
use tandem_launch::limits::{self, Need};
use tandem_launch::parent::die_with_parent;
use tandem_launch::protocol::{Metrics, WorkerEvent};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments[1..] {
        [mode] if mode == "alone" => wait_for_stop(),
        [mode, script] if mode == "worker" => work(&serde_json::from_str(script)?),
        [mode, script] if mode == "controller" => control(&serde_json::from_str(script)?),
        [mode, threads, descriptors, processes @ ..] if mode == "limits" => {
            if let [processes] = processes {
                let (current, maximum) = (Some(processes.parse()?), Some(processes.parse()?));
                setrlimit(Resource::Nproc, Rlimit { current, maximum })?;
            }
            let need = Need {
                threads: threads.parse()?,
                stack: None,
                descriptors: descriptors.parse()?,
            };
            if let Err(error) = limits::check(need) {
                println!("{error}");
                exit(exit_code::USAGE);
            }
            Ok(())
        }
        _ => Err("usage: tandem-fake-worker worker|controller SCRIPT, limits THREADS DESCRIPTORS [PROCESSES], or alone".into()),
    }
}

fn control(script: &ControllerScript) -> Result<(), Box<dyn Error>> {
    let worker = serde_json::to_string(&script.worker)?;
    let program = std::env::current_exe()?;
    let arguments = ["worker", &worker];
    let mut spec = LaunchSpec::new(program, arguments, script.num_workers, &script.run_dir);
    spec.graceful_stop = script.graceful_stop;
    spec.stop_grace = Duration::from_millis(script.stop_grace_ms);
    spec.max_failures = script.max_failures;
    spec.backoff.initial = Duration::from_millis(script.backoff_ms);
    let result = Controller::run(&spec, &mut |event| println!("{event:?}"));
    println!("{result:?}");
    match result {
        Ok(outcome) => exit(outcome.exit_code()),
        Err(failure) => {
            eprintln!("{failure}");
            exit(failure.exit_code())
        }
    }
}

fn wait_for_stop() -> Result<(), Box<dyn Error>> {
    die_with_parent(&process_environment)?;
    let client = ControlClient::from_env(&process_environment, 0)?;
    client.stop_flag().set_by_signals()?;
    println!("ready");
    while !client.stop_requested() {
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("asked to stop");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

struct Worker<'a> {
    script: &'a Script,
    rank: usize,
    attempt: u32,
    run_dir: PathBuf,
    control: ControlClient,
}

fn work(script: &Script) -> Result<(), Box<dyn Error>> {
    if !script.outlives_parent {
        die_with_parent(&process_environment)?;
    }
    if script.deaf {
        // Any handler will do: what matters is that SIGTERM no longer ends the process.
        let ignored = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGTERM, ignored)?;
    }
    let env = WorkerEnv::detect(&process_environment)?.ok_or("started without a launcher")?;
    let variable = |name: &str| process_environment(name).ok_or(format!("{name} is not set"));
    println!("{env:?} threads={}", variable("OMP_NUM_THREADS")?);
    let run_dir = PathBuf::from(variable(RUN_DIR)?);
    println!("rendezvous: {}", rendezvous(&env, &run_dir)?);
    Worker {
        script,
        rank: env.rank,
        attempt: variable(ATTEMPT)?.parse()?,
        run_dir,
        control: ControlClient::from_env(&process_environment, env.rank)?,
    }
    .live()
}

/// Proves the handover of the port: rank 0 holds the listening socket, and everybody else can connect while it lives.
fn rendezvous(env: &WorkerEnv, run_dir: &Path) -> Result<String, Box<dyn Error>> {
    let marker = |rank: usize| run_dir.join(format!("connected_{}_{rank}", env.master_port));
    let Some(fd) = env.master_fd else {
        TcpStream::connect((env.master_addr.as_str(), env.master_port))?;
        fs::write(marker(env.rank), b"")?;
        return Ok("connected".to_owned());
    };
    while !(1..env.world_size).all(|rank| marker(rank).exists()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let link = fs::read_link(format!("/proc/self/fd/{fd}"))?;
    let link = link.to_string_lossy();
    let inode = link
        .strip_prefix("socket:[")
        .and_then(|rest| rest.strip_suffix(']'))
        .ok_or(format!("descriptor {fd} is {link}"))?;
    // Columns of /proc/net/tcp: number, local address, remote address, state (0A is LISTEN), ..., inode.
    let address = format!("0100007F:{:04X}", env.master_port);
    let sockets = fs::read_to_string("/proc/self/net/tcp")?;
    let listens = sockets.lines().any(|line| {
        let columns: Vec<_> = line.split_ascii_whitespace().collect();
        columns.get(1) == Some(&address.as_str())
            && columns.get(3) == Some(&"0A")
            && columns.get(9) == Some(&inode)
    });
    match listens {
        true => Ok(format!("descriptor {fd} listens on {}", env.master_port)),
        false => Err(format!("descriptor {fd} does not listen on {address}").into()),
    }
}

impl Worker<'_> {
    fn live(self) -> Result<(), Box<dyn Error>> {
        if self.script.with_child && self.rank == 0 {
            let child = Command::new("sleep").arg("1000").spawn()?;
            println!("child {}", child.id());
        }
        self.phase("loading");
        if self.script.never_trains {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        let first = self.last_checkpoint();
        self.phase("training");
        for step in first..self.script.steps {
            self.fail_if_it_is_time(step)?;
            self.leave_if_a_peer_failed(step);
            std::thread::sleep(Duration::from_millis(self.script.step_ms));
            let metrics: Metrics = [("loss", 1.0 / (step + 1) as f64)].into_iter().collect();
            self.control.send(&WorkerEvent::Progress {
                step: step + 1,
                epoch: 0,
                metrics,
            });
            let every = self.script.checkpoint_every;
            let is_due = every > 0 && (step + 1).is_multiple_of(every);
            if is_due || self.control.take_save_now() {
                self.save(step + 1)?;
            }
            if self.control.stop_requested() && !self.script.stubborn {
                self.save(step + 1)?;
                self.leave(exit_code::STOPPED_AFTER_SAVING);
            }
        }
        let metrics = [("rank", self.rank as f64)].into_iter().collect();
        self.control.send(&WorkerEvent::Done { metrics });
        println!("done");
        Ok(())
    }

    fn fail_if_it_is_time(&self, step: u64) -> Result<(), Box<dyn Error>> {
        let Some(fault) = &self.script.fault else {
            return Ok(());
        };
        let its_step = fault.step + u64::from(self.attempt) * fault.later_each_attempt;
        if fault.rank != self.rank || its_step != step || self.attempt >= fault.attempts {
            return Ok(());
        }
        println!("about to fail");
        if !matches!(fault.kind, FaultKind::Error { .. }) {
            // An abrupt end loses events that are still queued; tests want to know which ones arrive.
            self.control.close();
        }
        match &fault.kind {
            FaultKind::Error { message, exit_code } => {
                if self.script.peers_notice {
                    // The others are quicker, as they are when a real collective breaks.
                    fs::write(self.failure_marker(), b"")?;
                    std::thread::sleep(Duration::from_millis(300));
                }
                self.report_error(step, message, false, *exit_code);
                self.leave(*exit_code);
            }
            FaultKind::Exit { code } => exit(*code),
            FaultKind::Panic => panic!("a fake panic"),
            FaultKind::Signal { number } => signal_hook::low_level::raise(*number)?,
            FaultKind::Stop => {
                fs::write(self.failure_marker(), b"")?;
                signal_hook::low_level::raise(signal_hook::consts::SIGSTOP)?;
            }
            FaultKind::Hang => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
        }
        Ok(())
    }

    fn leave_if_a_peer_failed(&self, step: u64) {
        if self.script.peers_notice && self.failure_marker().exists() {
            self.report_error(
                step,
                "a peer left during all_reduce",
                true,
                exit_code::FAILURE,
            );
            self.leave(exit_code::FAILURE);
        }
    }

    fn report_error(&self, step: u64, message: &str, secondary: bool, exit_code: i32) {
        self.control.send(&WorkerEvent::Error {
            rank: self.rank,
            step: Some(step),
            message: message.to_owned(),
            secondary,
            exit_code,
        });
    }

    /// Not a plain exit: the last words must get out, as they do when a real worker closes its client.
    fn leave(&self, code: i32) -> ! {
        self.control.close();
        exit(code)
    }

    fn phase(&self, name: &str) {
        let name = name.to_owned();
        self.control.send(&WorkerEvent::Phase { name });
    }

    fn failure_marker(&self) -> PathBuf {
        self.run_dir.join(format!("failed_{}", self.attempt))
    }

    fn last_checkpoint(&self) -> u64 {
        let text = fs::read_to_string(self.run_dir.join("checkpoint"));
        text.ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn save(&self, step: u64) -> Result<(), Box<dyn Error>> {
        if self.rank == 0 {
            replace(&self.run_dir, "checkpoint", &step.to_string())?;
            self.control.send(&WorkerEvent::Report {
                metrics: Metrics::new(),
                checkpoint_dir_name: Some(format!("checkpoint_{step}")),
            });
        }
        Ok(())
    }
}

fn replace(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let new = folder.join(format!("{name}.new"));
    fs::write(&new, text)?;
    fs::rename(new, folder.join(name))
}
