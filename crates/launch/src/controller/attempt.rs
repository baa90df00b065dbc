//! One attempt: from the start of the workers to the moment when none is left.

mod diagnosis;
mod ending;

use super::control_server::{ControlServer, Incoming};
use super::failure::Sign;
use super::signals::Received;
use super::worker_group::WorkerGroup;
use super::{
    ControllerEvent, Failure, RankError, Run, RunFailure, RunState, StopSignal, WorkerExit,
};
use crate::exit_code;
use crate::protocol::{Command, Metrics, PHASE_TRAINING, WorkerEvent};
use diagnosis::SETTLE;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The controller looks around at least this often, in case a signal was missed.
const TICK: Duration = Duration::from_secs(1);

/// How an attempt ended. No worker is left.
pub(super) enum AttemptEnd {
    Finished { metrics: Metrics },
    StoppedAfterSaving,
    Failed(Failure),
    Aborted { signal: StopSignal, reason: String },
}

pub(super) struct Attempt<'r, 'a> {
    run: &'r mut Run<'a>,
    number: u32,
    workers: WorkerGroup,
    server: ControlServer,
    /// By rank.
    ranks: Vec<RankState>,
    last_sign_of_life: Instant,
    signs: Vec<Sign>,
    first_sign_of_failure: Option<Instant>,
    stop: Option<Stop>,
    metrics: Option<(usize, Metrics)>,
}

#[derive(Debug, Clone, Default)]
struct RankState {
    step: Option<u64>,
    phase: Option<String>,
    /// Whether training has begun: from then on a stop may have something to save.
    trains: bool,
}

#[derive(Debug, Clone, Copy)]
struct Stop {
    signal: StopSignal,
    /// Whether the workers may finish their step and save.
    graceful: bool,
    deadline: Instant,
    /// How many signals have asked for it.
    requests: u32,
}

impl<'r, 'a> Attempt<'r, 'a> {
    pub(super) fn start(run: &'r mut Run<'a>, number: u32) -> Result<Self, RunFailure> {
        let server = ControlServer::open(run.spec.num_workers)
            .map_err(RunFailure::setup("open the control socket"))?;
        let workers = WorkerGroup::start(run.spec, number, &server.path())?;
        let pids = workers.pids();
        run.record.begin_attempt(number, &pids);
        for (rank, pid) in pids.into_iter().enumerate() {
            run.emit(ControllerEvent::WorkerStarted { rank, pid });
        }
        run.enter(RunState::Running, None);
        Ok(Self {
            number,
            workers,
            server,
            ranks: vec![RankState::default(); run.spec.num_workers],
            last_sign_of_life: Instant::now(),
            signs: Vec::new(),
            first_sign_of_failure: None,
            stop: None,
            metrics: None,
            run,
        })
    }

    /// Watches the workers until they end, by themselves or not.
    pub(super) fn supervise(mut self) -> Result<AttemptEnd, RunFailure> {
        loop {
            self.look_around()?;
            if let Some(stop) = self.stop
                && self.is_out_of_patience(stop)
            {
                return self.abort(stop);
            }
            if let Some(cause) = self.failure() {
                // What is known about the living is lost once they are ended.
                let failure = self.describe(cause);
                self.end_workers(Signal::TERM)?;
                return Ok(AttemptEnd::Failed(self.completed(failure)));
            }
            if self.workers.living().next().is_none() {
                return Ok(self.good_end());
            }
            self.wait(self.next_deadline())?;
        }
    }

    /// Takes in signals, events and exits, in the order that lets a worker's last words count before its death.
    fn look_around(&mut self) -> Result<(), RunFailure> {
        for received in self.run.signals.take() {
            self.on_signal(received);
        }
        let ended = self.workers.ended();
        for incoming in self.server.receive() {
            match incoming {
                Incoming::Event { rank, event } => self.on_event(rank, event),
                Incoming::Warning(text) => self.run.emit(ControllerEvent::Warning { text }),
            }
        }
        for rank in ended {
            let exit = self
                .workers
                .take_exit(rank)
                .map_err(RunFailure::setup("wait for a worker"))?;
            if !exit.is_good() {
                self.on_sign(Sign::BadExit { rank, exit });
            }
            self.run.emit(ControllerEvent::WorkerExited { rank, exit });
        }
        Ok(())
    }

    fn on_signal(&mut self, received: Received) {
        let signal = match received {
            Received::SaveNow => return self.server.tell_one(Command::SaveNow),
            Received::Stop(signal) => signal,
        };
        if let Some(stop) = &mut self.stop {
            stop.requests += 1;
            return;
        }
        // While ranks meet, load or tokenize there is nothing to save, and they do not listen.
        let graceful = self.run.spec.graceful_stop && self.ranks.iter().any(|rank| rank.trains);
        self.run.stop = Some(signal);
        self.stop = Some(Stop {
            signal,
            graceful,
            deadline: Instant::now() + self.run.spec.stop_grace,
            requests: 1,
        });
        if graceful {
            self.server.broadcast(Command::Stop);
        }
        self.run
            .emit(ControllerEvent::StopRequested { signal, graceful });
    }

    fn on_event(&mut self, rank: usize, event: WorkerEvent) {
        let state = &mut self.ranks[rank];
        match &event {
            // A worker that only repeats a warning is not getting on.
            WorkerEvent::Message { .. } => {}
            WorkerEvent::Error {
                step,
                message,
                secondary,
                exit_code,
                ..
            } => {
                let error = RankError {
                    rank,
                    step: step.or(state.step),
                    message: message.clone(),
                    secondary: *secondary,
                    exit_code: *exit_code,
                };
                self.on_sign(Sign::Reported(error));
            }
            alive => {
                self.last_sign_of_life = Instant::now();
                match alive {
                    WorkerEvent::Progress { step, .. } => {
                        state.step = Some(*step);
                        state.trains = true;
                    }
                    WorkerEvent::Phase { name } => {
                        state.phase = Some(name.clone());
                        state.trains |= name == PHASE_TRAINING;
                    }
                    // Rank 0 speaks for the run; without it, whoever spoke first does.
                    WorkerEvent::Done { metrics }
                        if rank == 0 || self.metrics.as_ref().is_none() =>
                    {
                        self.metrics = Some((rank, metrics.clone()));
                    }
                    _ => {}
                }
            }
        }
        self.run.worker_event(rank, event);
    }

    fn on_sign(&mut self, sign: Sign) {
        self.first_sign_of_failure.get_or_insert_with(Instant::now);
        self.signs.push(sign);
    }

    fn is_out_of_patience(&self, stop: Stop) -> bool {
        let is_patient = stop.graceful && stop.requests == 1;
        !is_patient || Instant::now() >= stop.deadline
    }

    fn good_end(&mut self) -> AttemptEnd {
        let saved = Some(WorkerExit::Code(exit_code::STOPPED_AFTER_SAVING));
        if self.workers.exits().any(|exit| exit == saved) {
            return AttemptEnd::StoppedAfterSaving;
        }
        let metrics = self.metrics.take();
        AttemptEnd::Finished {
            metrics: metrics.map(|(_, metrics)| metrics).unwrap_or_default(),
        }
    }

    /// When to look at the clock again, if nothing happens before.
    fn next_deadline(&self) -> Option<Instant> {
        let timeout = self.run.spec.hang_timeout;
        let hang = (!timeout.is_zero()).then(|| self.last_sign_of_life + timeout);
        let settle = self.first_sign_of_failure.map(|first| first + SETTLE);
        let stop = self.stop.map(|stop| stop.deadline);
        [hang, settle, stop].into_iter().flatten().min()
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<(), RunFailure> {
        let timeout = deadline.map_or(TICK, |deadline| {
            deadline.saturating_duration_since(Instant::now()).min(TICK)
        });
        self.run
            .signals
            .wait(&self.server.fds(), timeout)
            .map_err(RunFailure::setup("wait for its workers"))
    }
}
