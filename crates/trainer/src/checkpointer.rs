//! Saving while training goes on: every rank writes its own part in the background, rank 0 makes a checkpoint of the parts.
//!
//! A save is a walk of all ranks through the same stages, and they move together, at the [`Agreement`] after each step:
//!
//! 1. *begin*: rank 0 names the checkpoint;
//! 2. *writing*: a thread of every rank copies the rank's state and writes the copy as its shard. The next step runs
//!    meanwhile, up to its update, which waits until all is copied;
//! 3. *committing*: when the last shard is durable, rank 0 gathers the reports, and a thread of it commits and registers.
//!
//! At most one save is under way; one that is due while another is, waits for it.

mod committer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_checkpoint::{
    BackgroundWriter, NewCheckpoint, RunDir, ShardReport, Store, TensorSpec, TrainState,
};
use tandem_comm::{all_gather_bytes, broadcast_bytes};

use crate::agreement::{Agreement, Stage, gather_problems};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::events::SavedCheckpoint;
use crate::progress::ResumePoint;
use committer::Committer;

/// While training waits for a save, ranks look at each other this often: far below the time-out of a collective.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Where [`TrainState::extra`] has the [`ValidationState`](crate::ValidationState).
pub const VALIDATION: &str = "validation";

/// When and how checkpoints are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveRule {
    /// Every so many steps; 0: at the ends of epochs and of the run only.
    pub every: u64,
    /// Whether training goes on meanwhile.
    pub asynchronous: bool,
}

/// What a [`Checkpointer`] is made of.
pub struct CheckpointSetup {
    /// The experiment's folder.
    pub store: Arc<dyn Store>,
    /// The experiment, opened by rank 0.
    pub run: Option<RunDir>,
    /// Whether rank 0 keeps the list of checkpoints and deletes old ones; false where a supervisor (Ray) does.
    pub keeps_list: bool,
    /// What every checkpoint holds.
    pub tensors: Vec<TensorSpec>,
    /// What the run is: what a [`TrainState`] says besides how far it has come.
    pub identity: TrainState,
    /// When and how.
    pub rule: SaveRule,
    /// The step that the run continues from, which is saved already.
    pub resumed_step: Option<u64>,
}

/// How a save ended.
#[derive(Debug, Clone, PartialEq)]
pub enum SaveOutcome {
    /// There is a checkpoint.
    Saved(SavedCheckpoint),
    /// There is none.
    Failed {
        /// The optimizer step.
        step: u64,
        /// Which ranks, and why.
        problem: String,
    },
}

/// One rank's part in saving.
pub struct Checkpointer {
    rule: SaveRule,
    identity: TrainState,
    tensors: Arc<[TensorSpec]>,
    writer: BackgroundWriter,
    /// On rank 0.
    committer: Option<Committer>,
    in_flight: Option<InFlight>,
    /// The last step whose state was copied.
    begun: Option<u64>,
    /// Why there is no checkpoint of that step.
    problem: Option<String>,
}

/// A save under way.
struct InFlight {
    new: NewCheckpoint,
    state: TrainState,
    phase: Phase,
    begun: Instant,
    /// For how long training waited.
    blocked: Duration,
}

enum Phase {
    /// Shards are being written; this rank's result, when it is there.
    Writing(Option<Result<ShardReport, String>>),
    /// Rank 0 commits; the problem, if there is one, when it is done (on other ranks: at once, and none).
    Committing(Option<Result<committer::Committed, String>>),
}

impl Checkpointer {
    /// Nothing is under way.
    pub fn new(setup: CheckpointSetup) -> Self {
        let CheckpointSetup {
            store,
            run,
            keeps_list,
            tensors,
            identity,
            rule,
            resumed_step,
        } = setup;
        Self {
            writer: BackgroundWriter::new(store),
            committer: run.map(|run| Committer::new(run, keeps_list)),
            rule,
            identity,
            tensors: tensors.into(),
            in_flight: None,
            begun: resumed_step,
            problem: None,
        }
    }

    /// Whether a checkpoint is due after `step`.
    pub(crate) fn is_due(&self, step: u64, is_asked_for: bool) -> bool {
        let by_rule = self.rule.every > 0 && step.is_multiple_of(self.rule.every);
        (by_rule || is_asked_for) && self.begun != Some(step)
    }

    /// Takes note that the update had to wait for the copy.
    pub(crate) fn add_wait(&mut self, waited: Duration) {
        if let Some(save) = &mut self.in_flight {
            save.blocked += waited;
        }
    }

    /// How far this rank is. Does not wait.
    pub(crate) fn stage(&mut self) -> Stage {
        let Some(save) = &mut self.in_flight else {
            return Stage::Idle;
        };
        fn of<T>(result: &Option<Result<T, String>>) -> Stage {
            match result {
                None => Stage::Busy,
                Some(Ok(_)) => Stage::Done,
                Some(Err(_)) => Stage::Failed,
            }
        }
        match &mut save.phase {
            Phase::Writing(result) => {
                if result.is_none() {
                    *result = self
                        .writer
                        .poll()
                        .map(|result| result.map_err(|e| e.to_string()));
                }
                of(result)
            }
            Phase::Committing(result) => {
                if result.is_none()
                    && let Some(committer) = &mut self.committer
                {
                    *result = committer.poll();
                }
                of(result)
            }
        }
    }

    /// Moves the save on if all ranks are ready for it; `stage` is what they agreed on. Returns how it ended, once.
    ///
    /// # Errors
    /// When a peer fails. A save that fails is an outcome, not an error.
    pub(crate) fn advance(
        &mut self,
        engine: &Engine,
        stage: Stage,
    ) -> Result<Option<SaveOutcome>, TrainError> {
        if matches!(stage, Stage::Idle | Stage::Busy) {
            return Ok(None);
        }
        let Some(save) = self.in_flight.take() else {
            return Ok(None);
        };
        match save.phase {
            Phase::Writing(Some(own)) if stage == Stage::Failed => {
                let problem = all_problems(engine, own.err())?;
                if let Some(committer) = &self.committer {
                    committer.discard(&save.new);
                }
                Ok(Some(self.failed(&save.state, problem)))
            }
            Phase::Writing(Some(Ok(report))) => {
                let started = Instant::now();
                let reports = all_reports(engine, &report)?;
                let own = match &mut self.committer {
                    Some(committer) => {
                        let reports = reports.iter().map(|bytes| from_json(bytes));
                        let reports = reports.collect::<Result<Vec<_>, _>>()?;
                        let tensors = Arc::clone(&self.tensors);
                        let state = save.state.clone();
                        let started = committer.start(save.new.clone(), tensors, reports, state);
                        started.err().map(Err)
                    }
                    None => Some(Ok(committer::Committed::default())),
                };
                self.in_flight = Some(InFlight {
                    phase: Phase::Committing(own),
                    blocked: save.blocked + started.elapsed(),
                    ..save
                });
                Ok(None)
            }
            Phase::Committing(Some(own)) if stage == Stage::Failed => {
                let problem = all_problems(engine, own.err())?;
                Ok(Some(self.failed(&save.state, problem)))
            }
            Phase::Committing(Some(Ok(committed))) => {
                Ok(Some(SaveOutcome::Saved(SavedCheckpoint {
                    name: save.new.folder,
                    step: save.state.global_step,
                    metrics: save.state.metrics,
                    seconds: save.begun.elapsed().as_secs_f64(),
                    blocked_s: save.blocked.as_secs_f64(),
                    deleted: committed.deleted,
                    warnings: committed.warnings,
                })))
            }
            Phase::Writing(_) | Phase::Committing(_) => {
                unreachable!("a rank that is not done keeps all ranks busy")
            }
        }
    }

    /// Begins a save, after the one under way has ended. Without `asynchronous` it also ends. Returns how saves ended.
    ///
    /// # Errors
    /// When a peer fails.
    pub(crate) fn save(
        &mut self,
        engine: &Engine,
        point: &ResumePoint,
        alive: &mut dyn FnMut(),
    ) -> Result<Vec<SaveOutcome>, TrainError> {
        let begun = Instant::now();
        let mut ended = Vec::from_iter(self.finish(engine, alive)?);
        let new = self.begin(engine)?;
        let views = engine.state_views();
        let rank = engine.world.rank();
        tracing::debug!(folder = new.folder, "saving");
        let started = self
            .writer
            .start_copying(&new.folder, rank, move |snapshot| views.copy_to(snapshot))
            .map(|copying| engine.copying.set(Some(copying)));
        self.begun = Some(point.counters.step);
        self.problem = None;
        self.in_flight = Some(InFlight {
            new,
            state: self.state(point),
            phase: Phase::Writing(started.err().map(|error| Err(error.to_string()))),
            begun,
            blocked: begun.elapsed(),
        });
        if !self.rule.asynchronous {
            ended.extend(self.finish(engine, alive)?);
        }
        Ok(ended)
    }

    /// Waits for the save under way, if there is one. `alive` is called now and then.
    ///
    /// # Errors
    /// When a peer fails.
    pub(crate) fn finish(
        &mut self,
        engine: &Engine,
        alive: &mut dyn FnMut(),
    ) -> Result<Option<SaveOutcome>, TrainError> {
        let mut lap = Instant::now();
        let mut told_at = lap;
        while self.in_flight.is_some() {
            // All ranks have to come to every agreement, so none may simply wait for its own thread.
            let own = Agreement {
                stage: self.stage(),
                ..Agreement::default()
            };
            let agreed = own.reach(engine.world.as_ref(), engine.device)?;
            if let Some(save) = &mut self.in_flight {
                save.blocked += lap.elapsed();
                lap = Instant::now();
            }
            if let Some(outcome) = self.advance(engine, agreed.stage)? {
                return Ok(Some(outcome));
            }
            if agreed.stage == Stage::Busy {
                std::thread::sleep(LOOK_INTERVAL);
            }
            if told_at.elapsed() > Duration::from_secs(5) {
                alive();
                told_at = Instant::now();
            }
        }
        Ok(None)
    }

    fn failed(&mut self, state: &TrainState, problem: String) -> SaveOutcome {
        self.problem = Some(problem.clone());
        SaveOutcome::Failed {
            step: state.global_step,
            problem,
        }
    }

    /// Why the last save, after `step`, did not become a checkpoint, if it did not.
    pub(crate) fn last_problem(&self, step: u64) -> Option<TrainError> {
        let problem = self.problem.clone()?;
        Some(TrainError::Save { step, problem })
    }

    /// Whether the state after `step` is a checkpoint.
    pub fn has_saved(&self, step: u64) -> bool {
        self.begun == Some(step) && self.in_flight.is_none() && self.problem.is_none()
    }

    /// Rank 0 names the checkpoint for all.
    fn begin(&self, engine: &Engine) -> Result<NewCheckpoint, TrainError> {
        let own = match &self.committer {
            Some(committer) => to_json(&committer.begin())?,
            None => Vec::new(),
        };
        let bytes = broadcast_bytes(engine.world.as_ref(), &own, 0, engine.device)?;
        from_json(&bytes)
    }

    fn state(&self, point: &ResumePoint) -> TrainState {
        let ResumePoint {
            counters,
            next,
            metrics,
            evaluation,
            validation,
        } = point;
        let mut saved = metrics.to_saved();
        if let Some(evaluation) = evaluation {
            saved.insert("eval_loss".to_owned(), evaluation.eval_loss.into());
            saved.insert("perplexity".to_owned(), evaluation.perplexity.into());
        }
        let mut extra = self.identity.extra.clone();
        if let Some(Ok(validation)) = validation.as_ref().map(serde_json::to_value) {
            extra.insert(VALIDATION.to_owned(), validation);
        }
        TrainState {
            epoch: next.epoch,
            next_sample: next.sample,
            global_step: counters.step,
            next_global_sample: counters.samples_seen,
            tokens_seen: counters.tokens_seen,
            scheduler: BTreeMap::from([
                ("last_step".to_owned(), Value::from(counters.step)),
                ("last_learning_rate".to_owned(), Value::from(metrics.lr)),
            ]),
            metrics: saved,
            extra,
            ..self.identity.clone()
        }
    }
}

/// What every rank has written, on rank 0 and all others, as it goes from one to the other: only who commits makes anything of it.
fn all_reports(engine: &Engine, own: &ShardReport) -> Result<Vec<Vec<u8>>, TrainError> {
    let own = to_json(own)?;
    Ok(all_gather_bytes(
        engine.world.as_ref(),
        &own,
        engine.device,
    )?)
}

/// What went wrong on all ranks, as one text.
fn all_problems(engine: &Engine, own: Option<String>) -> Result<String, TrainError> {
    let problems = gather_problems(engine.world.as_ref(), own.as_deref(), engine.device)?;
    Ok(problems.join("; "))
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, TrainError> {
    serde_json::to_vec(value).map_err(|error| TrainError::Data(Box::new(error)))
}

fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, TrainError> {
    serde_json::from_slice(bytes).map_err(|error| TrainError::Data(Box::new(error)))
}
