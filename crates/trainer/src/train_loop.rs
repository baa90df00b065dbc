//! The loop around the step: batches in, metrics out, checks now and then.

mod meter;

use std::time::Instant;

use tandem_data::BatchSource;
use tandem_parallel::check_replicas;

use crate::agreement::{Agreement, Requests};
use crate::checkpointer::{Checkpointer, SaveOutcome};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::events::{EventSink, TrainEvent};
use crate::gemm_floor;
use crate::micro_batch::MicroBatch;
use crate::profile::{Activity, Profiler};
use crate::progress::{ResumePoint, RunCounters};
use crate::recorder::Recorder;
use crate::schedule::LearningRate;
use crate::train_step::{StepReport, UpdateRule, train_step};
use meter::{Meter, StepFacts};

/// What the loop needs to know besides the engine.
#[derive(Debug, Clone, Copy)]
pub struct LoopSettings {
    /// The learning rate of every step.
    pub learning_rate: LearningRate,
    /// How gradients become updates.
    pub rule: UpdateRule,
    /// The last step of the run.
    pub last_step: u64,
    /// Compare replicas every so many steps; 0 never.
    pub check_interval: u64,
}

/// How a loop ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoopEnd {
    /// How far it came.
    pub counters: RunCounters,
    /// Whether it was asked to stop before its end. Everything is saved.
    pub stopped: bool,
    /// Loss of the last step, if there was one.
    pub loss: Option<f64>,
}

/// Whoever reads the loop's progress and may end it.
pub struct Watcher<'a> {
    /// Where events go.
    pub sink: &'a mut dyn EventSink,
    /// Where metrics go.
    pub recorder: &'a mut Recorder,
    /// Labels collectives with the step, for their error messages.
    pub on_step: &'a dyn Fn(u64),
    /// What this rank was asked for since the last call.
    pub requests: &'a dyn Fn() -> Requests,
}

/// Trains on from `counters` to the last step or the end of the data, and saves when it is due, when it is asked for, and
/// in the end.
///
/// # Errors
/// Whatever ends a step, or a last checkpoint that cannot be written; the metrics of all finished steps are on disk then.
pub fn train_loop(
    engine: &mut Engine,
    source: &mut dyn BatchSource,
    settings: &LoopSettings,
    checkpoints: &mut Checkpointer,
    counters: RunCounters,
    watcher: &mut Watcher<'_>,
) -> Result<LoopEnd, TrainError> {
    let mut training = Training {
        meter: Meter::start(engine)?,
        engine,
        source,
        settings,
        checkpoints,
        watcher,
        first_step: counters.step + 1,
        counters,
        loss: None,
        stopped: false,
        unsaved: None,
    };
    training.begin();
    while let Some(step) = training.next_step() {
        let Some(batch) = training.batch(step)? else {
            break;
        };
        let report = training.train(step, &batch)?;
        training.check_replicas(step)?;
        let point = training.record(step, &batch, &report)?;
        training.agree_and_save(&batch, point)?;
        training.end_profile(&batch)?;
    }
    training.end()
}

/// A run between its first step and its end.
struct Training<'a, 'w> {
    engine: &'a mut Engine,
    source: &'a mut dyn BatchSource,
    settings: &'a LoopSettings,
    checkpoints: &'a mut Checkpointer,
    watcher: &'a mut Watcher<'w>,
    meter: Meter,
    /// The first step of this loop.
    first_step: u64,
    /// How far it has come.
    counters: RunCounters,
    /// Loss of the last step.
    loss: Option<f64>,
    /// Whether it was asked to stop before its end.
    stopped: bool,
    /// Where it stands, if no save of that has begun.
    unsaved: Option<ResumePoint>,
}

/// This rank's part of a step's global batch, on the device.
struct StepBatch {
    micro_batches: Vec<MicroBatch>,
    epoch: u64,
    /// Samples of the global batch: the last step of an epoch may have fewer rows than the ranks have room for.
    samples: u64,
    /// Whether it is the last of its epoch.
    ends_epoch: bool,
}

impl Training<'_, '_> {
    fn begin(&mut self) {
        self.watcher.sink.event(TrainEvent::Begin {
            first_step: self.first_step,
            last_step: self.settings.last_step,
        });
        self.meter.restart_clock();
    }

    /// The step to do, if there is one.
    fn next_step(&self) -> Option<u64> {
        let is_left = self.counters.step < self.settings.last_step && !self.stopped;
        is_left.then_some(self.counters.step + 1)
    }

    fn is_last(&self, step: u64) -> bool {
        step == self.settings.last_step
    }

    /// Takes a batch from the source; `None` at the end of the data.
    fn batch(&mut self, step: u64) -> Result<Option<StepBatch>, TrainError> {
        if let Some(profiler) = &self.engine.profiler {
            profiler.begin_step(step, self.first_step, self.settings.last_step);
        }
        self.engine.during(Activity::Data, |engine| {
            let batches = self.source.next_step();
            let batches = batches.map_err(|error| TrainError::Data(Box::new(error)))?;
            let on_device = |batches: Vec<tandem_data::Batch>| StepBatch {
                epoch: batches.first().map_or(0, |batch| batch.epoch),
                samples: batches.first().map_or(0, |batch| batch.step_samples),
                ends_epoch: batches.iter().any(|batch| batch.ends_epoch),
                micro_batches: batches
                    .iter()
                    .map(|it| {
                        let (ids, labels) = (&it.input_ids, &it.labels);
                        MicroBatch::new(ids, labels, engine.seq, it.hash, engine.device)
                            .with_documents(it.documents.clone(), engine.seq)
                    })
                    .collect(),
            };
            Ok(batches.map(on_device))
        })
    }

    fn train(&mut self, step: u64, batch: &StepBatch) -> Result<StepReport, TrainError> {
        (self.watcher.on_step)(step);
        let lr = self.settings.learning_rate.at(step);
        let rule = &self.settings.rule;
        let report = train_step(self.engine, &batch.micro_batches, lr, rule, step)?;
        self.checkpoints.add_wait(report.waited_for_copy);
        self.loss = Some(report.loss);
        Ok(report)
    }

    /// Compares what ranks have copies of, every `check_interval` steps.
    fn check_replicas(&mut self, step: u64) -> Result<(), TrainError> {
        let interval = self.settings.check_interval;
        if interval == 0 || !step.is_multiple_of(interval) {
            return Ok(());
        }
        settle(self.engine)?;
        let engine = &*self.engine;
        let (tp, dp) = (engine.tp.group.as_ref(), engine.dp.as_ref());
        check_replicas(&engine.units, tp, dp, step, engine.device)?;
        Ok(())
    }

    /// Counts the step, and writes down and tells its metrics. Returns where the run stands.
    fn record(
        &mut self,
        step: u64,
        batch: &StepBatch,
        report: &StepReport,
    ) -> Result<ResumePoint, TrainError> {
        let tokens = batch.samples * self.engine.seq as u64;
        self.counters.step = step;
        self.counters.tokens_seen += tokens;
        self.counters.samples_seen += batch.samples;
        let facts = StepFacts {
            report,
            epoch: batch.epoch,
            learning_rate: self.settings.learning_rate.at(step),
            tokens,
            counters: self.counters,
            is_last: self.is_last(step),
        };
        let metrics = self.meter.end_step(self.engine, &facts)?;
        self.watcher.recorder.step(&metrics)?;
        self.watcher.sink.event(TrainEvent::Step(metrics.clone()));
        Ok(ResumePoint {
            counters: self.counters,
            next: self.source.position(),
            metrics,
        })
    }

    /// Agrees with all ranks on what was asked for and on the save under way; and begins a save if one is due.
    fn agree_and_save(&mut self, batch: &StepBatch, point: ResumePoint) -> Result<(), TrainError> {
        let step = point.counters.step;
        let own = Agreement {
            requests: (self.watcher.requests)(),
            stage: self.checkpoints.stage(),
        };
        let agreed = own.reach(self.engine.world.as_ref(), self.engine.device)?;
        let ended = self.checkpoints.advance(self.engine, agreed.stage)?;
        self.tell(ended, None);
        self.stopped = agreed.requests.stop && !self.is_last(step);
        let is_asked_for = agreed.requests.save_now || self.is_end(step) || batch.ends_epoch;
        if self.checkpoints.is_due(step, is_asked_for) {
            let begun = Instant::now();
            self.save(&point, self.is_end(step).then_some(step))?;
            self.meter.add_saving(begun.elapsed());
            self.unsaved = None;
        } else {
            self.unsaved = Some(point);
        }
        Ok(())
    }

    /// Whether no step follows `step`, as far as one knows without looking at the data.
    fn is_end(&self, step: u64) -> bool {
        self.stopped || self.is_last(step)
    }

    fn save(&mut self, point: &ResumePoint, end: Option<u64>) -> Result<(), TrainError> {
        let (checkpoints, sink) = (&mut *self.checkpoints, &mut *self.watcher.sink);
        let ended = self.engine.during(Activity::Save, |engine| {
            checkpoints.save(engine, point, &mut || sink.event(TrainEvent::Saving))
        })?;
        for outcome in ended {
            self.tell(Some(outcome), end);
        }
        Ok(())
    }

    /// Tells how a save ended. That the run's last one failed, after the step `end`, is an error, which tells it itself.
    fn tell(&mut self, outcome: Option<SaveOutcome>, end: Option<u64>) {
        let sink = &mut *self.watcher.sink;
        match outcome {
            Some(SaveOutcome::Saved(saved)) => sink.event(TrainEvent::Saved(saved)),
            Some(SaveOutcome::Failed { step, .. }) if Some(step) == end => {}
            Some(SaveOutcome::Failed { step, problem }) => {
                sink.event(TrainEvent::SaveFailed { step, problem });
            }
            None => {}
        }
    }

    /// When the last step to be profiled is done: the trace, and the table.
    fn end_profile(&mut self, batch: &StepBatch) -> Result<(), TrainError> {
        let is_end = self.is_end(self.counters.step);
        if let Some(profiler) = self.engine.profiler.take_if(|it| it.end_step(is_end)) {
            let lines = finish_profile(self.engine, &profiler, &batch.micro_batches)?;
            self.watcher.sink.event(TrainEvent::Profile(lines));
            self.meter.restart_clock();
        }
        Ok(())
    }

    /// Saves what is not saved, and waits for the last save.
    fn end(mut self) -> Result<LoopEnd, TrainError> {
        let end = Some(self.counters.step);
        if let Some(point) = self.unsaved.take() {
            self.save(&point, end)?;
        }
        let sink = &mut *self.watcher.sink;
        sink.event(TrainEvent::Saving);
        let alive = &mut || sink.event(TrainEvent::Saving);
        let last = self.checkpoints.finish(self.engine, alive)?;
        self.tell(last, end);
        // Without a checkpoint of its last step, the work since the one before would be lost.
        if let Some(error) = self.checkpoints.last_problem(self.counters.step) {
            return Err(error);
        }
        self.watcher.recorder.finish()?;
        self.watcher.sink.event(TrainEvent::End);
        Ok(LoopEnd {
            counters: self.counters,
            stopped: self.stopped,
            loss: self.loss,
        })
    }
}

/// Waits for the parameters of the last update to arrive everywhere.
fn settle(engine: &mut Engine) -> Result<(), TrainError> {
    for unit in &mut engine.units {
        if unit.kept_parameters().is_some() {
            let _whole = unit.unshard(&mut engine.pool)?;
        }
    }
    Ok(())
}

/// Writes this rank's trace, and makes the table, for which the rates of matrix products are measured now. All ranks call
/// it together.
fn finish_profile(
    engine: &Engine,
    profiler: &Profiler,
    micro_batches: &[MicroBatch],
) -> Result<Vec<String>, TrainError> {
    profiler.write_trace(engine.world.rank())?;
    // All at the same time, as they compute at the same time.
    engine.world.barrier()?.wait()?;
    let tokens = micro_batches.first().map_or(0, |micro| micro.tokens);
    let shapes = gemm_floor::shapes(&engine.dimensions(), tokens);
    let kind = engine.strategy.precision.matmul;
    let products = gemm_floor::measure(&shapes, kind, engine.device, 3);
    Ok(profiler.table(&products, micro_batches.len()))
}
