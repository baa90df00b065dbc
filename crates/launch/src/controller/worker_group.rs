//! The worker processes of one attempt.
//!
//! Every worker leads a process group of its own: a terminal's Ctrl-C does not reach it, and whatever it starts can be
//! ended with it. When this value is dropped, by a panic even, no worker is left.

use super::worker_log::WorkerLog;
use super::{LaunchSpec, RunFailure, WorkerExit};
use crate::env::{ATTEMPT, CONTROL, CONTROLLER_PID, MASTER_FD, RENDEZVOUS_SECRET, RUN_DIR};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::available_parallelism;

/// Where rank 0 finds the listening socket: the first descriptor after stdin, stdout and stderr.
const MASTER_FD_NUMBER: i32 = 3;

/// Libraries that start a thread for every core unless told otherwise. With several workers on a host that is too many.
const THREAD_COUNT: &str = "OMP_NUM_THREADS";

#[derive(Debug)]
pub(super) struct WorkerGroup {
    workers: Vec<Worker>,
}

#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    log: WorkerLog,
    exit: Option<WorkerExit>,
}

impl WorkerGroup {
    pub(super) fn start(
        spec: &LaunchSpec,
        attempt: u32,
        control: &Path,
    ) -> Result<Self, RunFailure> {
        // A new port each time: connections of the last attempt may linger on the old one.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .map_err(RunFailure::setup("open a port for the workers' rendezvous"))?;
        let port = listener
            .local_addr()
            .map_err(RunFailure::setup("read its rendezvous port"))?
            .port();
        // Nobody else on this machine may take a rank's place. A new one each time, so that a worker of the last attempt that
        // would not die is a stranger too.
        let secret = random_secret().map_err(RunFailure::setup("draw a secret for the workers"))?;
        let mut listener = Some(OwnedFd::from(listener));
        let mut group = Self {
            workers: Vec::with_capacity(spec.num_workers),
        };
        for rank in 0..spec.num_workers {
            let mut command = command(spec, rank, attempt, control, port);
            let mut spawn = || -> io::Result<Worker> {
                command.env(RENDEZVOUS_SECRET, &secret);
                let (log, file) = WorkerLog::open(&spec.run_dir, rank, attempt)?;
                command.stdout(file.try_clone()?).stderr(file);
                if let Some(parent_fd) = listener.take() {
                    let mapping = FdMapping {
                        parent_fd,
                        child_fd: MASTER_FD_NUMBER,
                    };
                    command
                        .env(MASTER_FD, MASTER_FD_NUMBER.to_string())
                        .fd_mappings(vec![mapping])
                        .map_err(io::Error::other)?;
                }
                Ok(Worker {
                    child: command.spawn()?,
                    log,
                    exit: None,
                })
            };
            let worker = spawn().map_err(|source| RunFailure::Start {
                rank,
                program: spec.program.clone(),
                source,
            })?;
            group.workers.push(worker);
        }
        Ok(group)
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.workers
            .iter()
            .map(|worker| worker.child.id())
            .collect()
    }

    /// Ranks whose process has not ended, with its id.
    pub(super) fn living(&self) -> impl Iterator<Item = (usize, u32)> {
        let ranks = self.workers.iter().enumerate();
        ranks
            .filter(|(_, worker)| worker.exit.is_none())
            .map(|(rank, worker)| (rank, worker.child.id()))
    }

    pub(super) fn exit(&self, rank: usize) -> Option<WorkerExit> {
        self.workers.get(rank).and_then(|worker| worker.exit)
    }

    pub(super) fn exits(&self) -> impl Iterator<Item = Option<WorkerExit>> {
        self.workers.iter().map(|worker| worker.exit)
    }

    pub(super) fn log(&self, rank: usize) -> Option<&WorkerLog> {
        self.workers.get(rank).map(|worker| &worker.log)
    }

    /// Ranks that have ended but are not taken note of yet. Their last words may still be in the control socket: read it
    /// after this call and before [`take_exit`](Self::take_exit).
    pub(super) fn ended(&self) -> Vec<usize> {
        let living = self.living();
        living
            .filter(|(_, pid)| has_ended(*pid))
            .map(|(rank, _)| rank)
            .collect()
    }

    /// Takes note of a rank that [`ended`](Self::ended), and kills whatever it left in its process group.
    pub(super) fn take_exit(&mut self, rank: usize) -> io::Result<WorkerExit> {
        let worker = &mut self.workers[rank];
        // Before the worker is reaped, its id cannot belong to anybody else.
        signal_group(worker.child.id(), Signal::KILL);
        let exit = WorkerExit::from(worker.child.wait()?);
        worker.exit = Some(exit);
        Ok(exit)
    }

    /// Sends `signal` to all living workers and whatever they started.
    pub(super) fn signal_all(&self, signal: Signal) {
        for (_, pid) in self.living() {
            signal_group(pid, signal);
        }
    }
}

impl Drop for WorkerGroup {
    fn drop(&mut self) {
        self.signal_all(Signal::KILL);
        for worker in &mut self.workers {
            // A worker that the kernel holds must not hold the controller: it was reported as left behind.
            let _ = worker.child.try_wait();
        }
    }
}

fn command(spec: &LaunchSpec, rank: usize, attempt: u32, control: &Path, port: u16) -> Command {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .stdin(Stdio::null())
        .process_group(0)
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .env_remove(MASTER_FD);
    let has_thread_count = std::env::var_os(THREAD_COUNT).is_some()
        || spec.env.iter().any(|(name, _)| name == THREAD_COUNT);
    if !has_thread_count {
        let cores = available_parallelism().map_or(1, usize::from);
        let threads = (cores / spec.num_workers).max(1);
        command.env(THREAD_COUNT, threads.to_string());
    }
    let size = spec.num_workers.to_string();
    command
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", &size)
        .env("LOCAL_RANK", rank.to_string())
        .env("LOCAL_WORLD_SIZE", &size)
        .env("NODE_RANK", "0")
        .env("GROUP_RANK", "0")
        .env("MASTER_ADDR", Ipv4Addr::LOCALHOST.to_string())
        .env("MASTER_PORT", port.to_string())
        .env(CONTROL, control)
        .env(CONTROLLER_PID, std::process::id().to_string())
        .env(ATTEMPT, attempt.to_string())
        .env(RUN_DIR, &spec.run_dir);
    command
}

/// 256 bits as text. Only the user and root can read the environment of a process, unlike its arguments.
fn random_secret() -> io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether an unreaped child has ended, without reaping it.
fn has_ended(pid: u32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    process(pid).is_some_and(|pid| !matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
}

/// The group may be gone already; there is nothing to be done about any other error either.
fn signal_group(leader: u32, signal: Signal) {
    if let Some(group) = process(leader) {
        let _ = kill_process_group(group, signal);
    }
}

fn process(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}
