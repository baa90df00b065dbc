//! The local controller: one process that starts a run's workers, watches them, and restarts them after failures.
//!
//! States and policies are those of Ray Train V2's controller (`python/ray/train/v2/_internal/execution/controller/`
//! in Ray's source), for workers of one host:
//!
//! ```text
//! INITIALIZING ─► SCHEDULING ─► RUNNING ─► FINISHED      every worker ended with exit code 0
//!                     ▲            ├─────► ABORTED       SIGINT, SIGTERM or SIGHUP
//!                     │            ├─────► ERRORED       more failures than max_failures, or one that a restart cannot cure
//!                     └─ RESTARTING ◄──────              a failure; all workers are gone, back-off
//! ```
//!
//! Unlike Ray's, the failures that are held against `max_failures` are those since the last progress: a new
//! checkpoint, or a step beyond the best of all attempts so far. A week-long run that fails once a day and recovers is
//! healthy.
//!
//! # Signals
//! The first SIGINT, SIGTERM or SIGHUP asks the workers to stop (or, without `graceful_stop`, ends them), the second one
//! kills them at once. SIGUSR1 asks them to save a checkpoint. Under nohup, which ignores SIGHUP, that stays ignored. Workers are in process groups of their own, so a terminal's
//! Ctrl-C reaches the controller only. A controller that dies takes its workers along, provided they call
//! [`die_with_parent`](crate::parent::die_with_parent).
//!
//! # Files
//! In the run's folder: `run.json` (state and history), `logs/rank_{r}.log`, `.lock`.

mod attempt;
mod control_server;
mod event;
mod failure;
mod failure_policy;
mod run_failure;
mod run_lock;
mod run_record;
mod run_status;
mod signals;
mod spec;
mod worker_exit;
mod worker_group;
mod worker_log;

pub use event::{ControllerEvent, RunEnd, RunState, StopSignal};
pub use failure::{Failure, FailureCause, RankError};
pub use run_failure::RunFailure;
pub use run_lock::{LockError, LockOwner};
pub use run_status::RunStatus;
pub use spec::{Backoff, LaunchSpec, SpecError};
pub use worker_exit::WorkerExit;

use crate::protocol::WorkerEvent;
use attempt::{Attempt, AttemptEnd};
use failure_policy::{Decision, FailurePolicy};
use run_lock::RunLock;
use run_record::RunRecord;
use signals::{Received, Signals};
use std::time::{Duration, Instant};

/// Runs training under supervision.
#[derive(Debug, Clone, Copy)]
pub struct Controller;

impl Controller {
    /// Starts the workers that `spec` describes and returns when none is left: after the end of training, a stop, or
    /// a failure that is not restarted. `on_event` is called on this thread for everything that happens, and nothing
    /// else happens until it returns.
    ///
    /// Linux takes the end of the *thread* that started a worker for the death of its parent, so this thread must not
    /// end before the call returns (which it cannot, short of dying with the process).
    ///
    /// Handlers for SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGCHLD are installed for the time of the call. Afterwards these
    /// signals are ignored rather than deadly: the program is expected to end soon.
    ///
    /// # Errors
    /// [`RunFailure`]: the run is set up wrongly, owned by another controller, or failed for good. No worker is left,
    /// except where the error is [`RunFailure::WorkersLeft`].
    pub fn run(
        spec: &LaunchSpec,
        on_event: &mut dyn FnMut(&ControllerEvent),
    ) -> Result<RunEnd, RunFailure> {
        spec.validate()?;
        let signals = Signals::install().map_err(RunFailure::setup("install signal handlers"))?;
        std::fs::create_dir_all(spec.run_dir.join(worker_log::FOLDER))
            .map_err(RunFailure::setup("make the folder of the logs"))?;
        let (lock, stale_owner) = RunLock::acquire(&spec.run_dir)?;
        let (record, warning) = RunRecord::begin(spec)?;
        let mut run = Run {
            spec,
            on_event,
            signals,
            record,
            policy: FailurePolicy::new(spec.max_failures, spec.backoff),
            progress: Furthest::default(),
            stop: None,
        };
        if let Some(text) = warning {
            run.emit(ControllerEvent::Warning { text });
        }
        if let Some(owner) = stale_owner {
            run.emit(ControllerEvent::LockTakenOver { owner });
        }
        let result = run.run_attempts();
        if let Err(error) = &result
            && !run.record.is_over()
        {
            run.enter(RunState::Errored, Some(error.to_string()));
        }
        drop(run);
        drop(lock);
        result
    }
}

/// What the controller keeps from one attempt to the next.
struct Run<'a> {
    spec: &'a LaunchSpec,
    on_event: &'a mut dyn FnMut(&ControllerEvent),
    signals: Signals,
    record: RunRecord,
    policy: FailurePolicy,
    progress: Furthest,
    /// Set by the first signal that asks to stop; after it nothing is started again.
    stop: Option<StopSignal>,
}

/// The last step of the attempt that came furthest.
#[derive(Debug, Default)]
struct Furthest {
    best_step: Option<u64>,
    checkpoint: Option<String>,
}

impl Run<'_> {
    fn run_attempts(&mut self) -> Result<RunEnd, RunFailure> {
        self.enter(RunState::Initializing, None);
        self.end_orphans()?;
        for number in 0.. {
            self.enter(RunState::Scheduling, None);
            let end = match Attempt::start(self, number) {
                Ok(attempt) => attempt.supervise(),
                Err(error) => Err(error),
            };
            let failure = match self.settle(end)? {
                Settled::Over(outcome) => return Ok(outcome),
                Settled::Failed(failure) => failure,
            };
            let decision = self.policy.decide(&failure);
            let Some(delay) = self.restart_delay(decision) else {
                self.enter(RunState::Errored, Some(failure.to_string()));
                return Err(RunFailure::Workers {
                    failure: Box::new(failure),
                    failures: self.policy.failures(),
                    max_failures: self.spec.max_failures,
                });
            };
            self.enter(RunState::Restarting, Some(failure.to_string()));
            self.emit(ControllerEvent::Restarting {
                failure: Box::new(failure),
                failures: self.policy.failures(),
                delay,
            });
            if let Some(signal) = self.back_off(delay)? {
                return Ok(self.abort(signal, "stopped between two attempts".to_owned()));
            }
        }
        unreachable!("attempts are numbered without end")
    }

    /// Writes down how an attempt ended, and ends the run unless it failed.
    fn settle(&mut self, end: Result<AttemptEnd, RunFailure>) -> Result<Settled, RunFailure> {
        let outcome = match end {
            Ok(AttemptEnd::Failed(failure)) => {
                self.record.end_attempt("failed", Some(failure.to_string()));
                return Ok(Settled::Failed(failure));
            }
            Ok(AttemptEnd::Finished { metrics }) => {
                self.record.end_attempt("finished", None);
                self.enter(RunState::Finished, None);
                RunEnd::Finished { metrics }
            }
            Ok(AttemptEnd::StoppedAfterSaving) => {
                self.record.end_attempt("stopped after saving", None);
                self.enter(RunState::Aborted, Some("stopped after saving".to_owned()));
                RunEnd::StoppedAfterSaving { signal: self.stop }
            }
            Ok(AttemptEnd::Aborted { signal, reason }) => {
                self.record.end_attempt("aborted", Some(reason.clone()));
                self.abort(signal, reason)
            }
            Err(error) => {
                self.record.end_attempt("failed", Some(error.to_string()));
                self.enter(RunState::Errored, Some(error.to_string()));
                return Err(error);
            }
        };
        Ok(Settled::Over(outcome))
    }

    fn restart_delay(&self, decision: Decision) -> Option<Duration> {
        match decision {
            // Whoever asked to stop does not want to see a new start, whatever the policy says; and where the run's folder is
            // gone, new workers would hide by their own errors what the last ones have found.
            Decision::Restart { delay } if self.stop.is_none() && self.has_folder() => Some(delay),
            _ => None,
        }
    }

    fn has_folder(&self) -> bool {
        self.spec.run_dir.join(worker_log::FOLDER).is_dir()
    }

    fn abort(&mut self, signal: StopSignal, reason: String) -> RunEnd {
        self.enter(RunState::Aborted, Some(reason));
        RunEnd::Aborted { signal }
    }

    /// Waits before a restart; returns early, with the signal, when asked to stop.
    fn back_off(&mut self, delay: Duration) -> Result<Option<StopSignal>, RunFailure> {
        let deadline = Instant::now() + delay;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.signals
                .wait(&[], left)
                .map_err(RunFailure::setup("wait"))?;
            for received in self.signals.take() {
                if let Received::Stop(signal) = received {
                    self.stop = Some(signal);
                    return Ok(Some(signal));
                }
            }
        }
    }

    /// Ends workers of a controller that died, in case they were too young to have asked for the kernel's signal: two
    /// groups must never write one experiment.
    fn end_orphans(&mut self) -> Result<(), RunFailure> {
        for pid in self.record.end_orphans(&self.spec.run_dir)? {
            let text = format!("ended worker {pid}, which a controller that died had left behind");
            self.emit(ControllerEvent::Warning { text });
        }
        Ok(())
    }

    fn enter(&mut self, state: RunState, reason: Option<String>) {
        self.record.enter(state, reason, self.policy.failures());
        self.emit(ControllerEvent::StateChanged { state });
        self.save_record();
    }

    /// A full disk must not end a run that can go on: the file is for people.
    fn save_record(&mut self) {
        if let Err(error) = self.record.save() {
            let text = format!("cannot write {}: {error}", self.record.path().display());
            self.emit(ControllerEvent::Warning { text });
        }
    }

    fn worker_event(&mut self, rank: usize, event: WorkerEvent) {
        match &event {
            WorkerEvent::Progress { step, .. }
                if self.progress.best_step.is_none_or(|best| *step > best) =>
            {
                self.progress.best_step = Some(*step);
                self.record.last_step(*step);
                self.policy.progressed();
            }
            WorkerEvent::Report {
                checkpoint_dir_name: Some(name),
                ..
            } if self.progress.checkpoint.as_ref() != Some(name) => {
                self.progress.checkpoint = Some(name.clone());
                self.record.last_checkpoint(name);
                self.policy.progressed();
                self.save_record();
            }
            _ => {}
        }
        self.emit(ControllerEvent::Worker { rank, event });
    }

    fn emit(&mut self, event: ControllerEvent) {
        (self.on_event)(&event);
    }
}

impl Drop for Run<'_> {
    /// A panic of whoever is told of events ends the run, and the file must not say otherwise.
    fn drop(&mut self) {
        if std::thread::panicking() && !self.record.is_over() {
            let reason = Some("the controller panicked".to_owned());
            self.record.end_attempt("failed", reason.clone());
            self.record
                .enter(RunState::Errored, reason, self.policy.failures());
            // The panic is the news.
            let _ = self.record.save();
        }
    }
}

enum Settled {
    Over(RunEnd),
    Failed(Failure),
}
