//! The loop around the step: batches in, metrics out, checks now and then.

mod interface;
mod meter;

use std::time::{Duration, Instant};

use tandem_data::BatchSource;
use tandem_parallel::check_replicas;

use crate::agreement::{Agreement, Requests};
use crate::balance::IdleExperts;
use crate::checkpointer::{Checkpointer, SaveOutcome};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::evaluate::evaluate;
use crate::events::{EvalMetrics, TrainEvent};
use crate::gemm_floor;
use crate::journal::Happening;
use crate::micro_batch::MicroBatch;
use crate::profile::{Activity, Profiler};
use crate::progress::{ResumePoint, RunCounters};
use crate::train_step::{StepReport, train_step};
use crate::validation::Validation;
pub use interface::{LoopEnd, LoopSettings, Watcher};
use meter::{Meter, StepFacts};

/// While the model is evaluated, whoever watches hears of it this often.
const ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Trains on from `counters` to the last step or the end of the data, and saves when it is due, when it is asked for, and
/// in the end. With `validation` the model is evaluated on the way, which changes nothing but when the run ends.
///
/// # Errors
/// Whatever ends a step, or a last checkpoint that cannot be written; the metrics of all finished steps are on disk then.
pub fn train_loop(
    engine: &mut Engine,
    source: &mut dyn BatchSource,
    settings: &LoopSettings,
    checkpoints: &mut Checkpointer,
    counters: RunCounters,
    validation: Option<Validation>,
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
        validation,
        evaluation: None,
        asked: Requests::default(),
        idle_experts: IdleExperts::default(),
        loss: None,
        stopped: false,
        ends_early: false,
        point: None,
    };
    training.begin()?;
    while let Some(step) = training.next_step() {
        let Some(batch) = training.batch(step)? else {
            break;
        };
        let report = training.train(step, &batch)?;
        training.check_replicas(step)?;
        let mut point = training.record(step, &batch, &report)?;
        training.validate(&batch, &mut point)?;
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
    /// The evaluations, where there are any.
    validation: Option<Validation>,
    /// The last of them.
    evaluation: Option<EvalMetrics>,
    /// What was asked for during one, on all ranks.
    asked: Requests,
    idle_experts: IdleExperts,
    /// Loss of the last step.
    loss: Option<f64>,
    /// Whether it was asked to stop before its end.
    stopped: bool,
    /// Whether evaluations have shown that more steps are of no use.
    ends_early: bool,
    /// Where it stands, after the first step.
    point: Option<ResumePoint>,
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
    fn begin(&mut self) -> Result<(), TrainError> {
        let (ranks, peak) = (self.engine.world.size(), self.meter.peak());
        self.watcher.recorder.note(Happening::Started {
            step: self.counters.step,
            last_step: self.settings.last_step,
            ranks,
            peak_flops: peak.flops,
            peak_of: peak.of(),
        });
        let line = peak.line(ranks);
        self.watcher.sink.event(TrainEvent::Summary(vec![line]));
        self.watcher.sink.event(TrainEvent::Begin {
            first_step: self.first_step,
            last_step: self.settings.last_step,
        });
        let done = self.counters.step;
        let is_due = |it: &Validation| it.is_due_at_start(done);
        if self.validation.as_ref().is_some_and(is_due) {
            self.evaluate(done)?;
            // What is there is saved. Before the first step nothing is, so that is done first.
            self.stopped = self.asked.stop && done > 0;
        } else if let Some(why) = self.validation.as_ref().and_then(Validation::why_it_ends) {
            self.end_early(why);
        }
        self.meter.restart_clock();
        Ok(())
    }

    /// The step to do, if there is one.
    fn next_step(&self) -> Option<u64> {
        let is_over = self.stopped || self.ends_early;
        let is_left = self.counters.step < self.settings.last_step && !is_over;
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
            let on_device = |batches: Vec<tandem_data::Batch>| {
                let micro_batches = batches
                    .iter()
                    .map(|it| MicroBatch::of(it, &mut engine.feed));
                Ok(StepBatch {
                    epoch: batches.first().map_or(0, |batch| batch.epoch),
                    samples: batches.first().map_or(0, |batch| batch.step_samples),
                    ends_epoch: batches.iter().any(|batch| batch.ends_epoch),
                    micro_batches: micro_batches.collect::<Result<_, TrainError>>()?,
                })
            };
            batches.map(on_device).transpose()
        })
    }

    fn train(&mut self, step: u64, batch: &StepBatch) -> Result<StepReport, TrainError> {
        (self.watcher.on_step)(step);
        let lr = self.settings.learning_rate.at(step);
        let rule = &self.settings.rule;
        let report = train_step(self.engine, &batch.micro_batches, lr, rule, step)?;
        self.checkpoints.add_wait(report.waited_for_copy);
        if let (Some(experts), 0) = (&report.experts, self.engine.world.rank()) {
            self.idle_experts.after_step(experts);
        }
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
        let (tp, device) = (engine.tp.group.as_ref(), engine.device);
        let (spread, others): (Vec<_>, Vec<_>) = engine
            .units
            .iter()
            .partition(|unit| unit.layout().experts_of.is_some());
        check_replicas(others, tp, engine.dp.as_ref(), step, device)?;
        if let Some(replicas) = &engine.expert_replicas {
            check_replicas(spread, tp, replicas.as_ref(), step, device)?;
        }
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
            evaluation: None,
            validation: None,
        })
    }

    /// Evaluates after a step, where that is due, and adds what came out to where the run stands.
    fn validate(&mut self, batch: &StepBatch, point: &mut ResumePoint) -> Result<(), TrainError> {
        let step = point.counters.step;
        let is_end = self.is_last(step) || batch.ends_epoch;
        let is_due = |it: &Validation| it.is_due(step, is_end);
        if self.validation.as_ref().is_some_and(is_due) {
            point.evaluation = self.evaluate(step)?;
            // It was no part of the next step.
            self.meter.restart_clock();
        }
        point.validation = self.validation.as_ref().map(|it| it.state().clone());
        Ok(())
    }

    /// Evaluates now, unless somebody asks to stop meanwhile: then the next start does it.
    fn evaluate(&mut self, step: u64) -> Result<Option<EvalMetrics>, TrainError> {
        let Some(mut validation) = self.validation.take() else {
            return Ok(None);
        };
        let set = validation.set.clone();
        self.watcher.sink.event(TrainEvent::Evaluating);
        let mut told_at = Instant::now();
        let mut saves = Vec::new();
        let Self {
            engine,
            checkpoints,
            watcher,
            asked,
            ..
        } = self;
        let result = evaluate(engine, &set, step, &mut |engine| {
            if told_at.elapsed() > ALIVE_INTERVAL {
                watcher.sink.event(TrainEvent::Evaluating);
                told_at = Instant::now();
            }
            let (agreed, ended) = agree(engine, checkpoints, (watcher.requests)())?;
            saves.extend(ended);
            *asked = asked.or(agreed);
            Ok(!asked.stop)
        })?;
        for outcome in saves {
            self.tell(Some(outcome), None);
        }
        match &result {
            None => validation.leave_after(step),
            Some(result) => {
                validation.add(result);
                self.watcher.recorder.evaluation(result)?;
                self.watcher.sink.event(TrainEvent::from(*result));
                self.evaluation = Some(*result);
                if let Some(why) = validation.why_it_ends().filter(|_| !self.is_last(step)) {
                    self.end_early(why);
                }
            }
        }
        self.validation = Some(validation);
        Ok(result)
    }

    fn end_early(&mut self, why: String) {
        self.ends_early = true;
        self.watcher.sink.event(TrainEvent::Summary(vec![why]));
    }

    /// Agrees with all ranks on what was asked for and on the save under way; and begins a save if one is due.
    fn agree_and_save(&mut self, batch: &StepBatch, point: ResumePoint) -> Result<(), TrainError> {
        let step = point.counters.step;
        let own = (self.watcher.requests)();
        let (agreed, ended) = agree(self.engine, self.checkpoints, own)?;
        self.tell(ended, None);
        let asked = std::mem::take(&mut self.asked).or(agreed);
        // An evaluation that was left is something to come back for.
        let is_left = self.validation.as_ref().is_some_and(Validation::is_left);
        self.stopped = asked.stop && (is_left || !self.is_end(step));
        let is_asked_for = asked.save_now || self.is_end(step) || batch.ends_epoch;
        if self.checkpoints.is_due(step, is_asked_for) {
            let begun = Instant::now();
            self.save(&point, self.is_end(step).then_some(step))?;
            self.meter.add_saving(begun.elapsed());
        }
        self.point = Some(point);
        Ok(())
    }

    /// Whether no step follows `step`, as far as one knows without looking at the data.
    fn is_end(&self, step: u64) -> bool {
        self.stopped || self.ends_early || self.is_last(step)
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
        let Watcher { sink, recorder, .. } = &mut *self.watcher;
        match outcome {
            Some(SaveOutcome::Saved(saved)) => {
                recorder.note(Happening::saved(&saved));
                sink.event(TrainEvent::Saved(saved));
            }
            Some(SaveOutcome::Failed { step, problem }) => {
                recorder.note(Happening::SaveFailed {
                    step,
                    problem: &problem,
                });
                if Some(step) != end {
                    sink.event(TrainEvent::SaveFailed { step, problem });
                }
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
        let step = self.counters.step;
        let point = self.point.take();
        let unsaved = point.as_ref();
        if let Some(point) = unsaved.filter(|_| self.checkpoints.is_due(step, true)) {
            self.save(point, Some(step))?;
        }
        self.finish_saving()?;
        // Without a checkpoint of its last step, the work since the one before would be lost.
        if let Some(error) = self.checkpoints.last_problem(step) {
            self.save_elsewhere(point, error)?;
        }
        self.watcher.recorder.note(Happening::Ended {
            step: self.counters.step,
            stopped: self.stopped,
        });
        self.watcher.recorder.finish()?;
        self.watcher.sink.event(TrainEvent::End);
        Ok(LoopEnd {
            counters: self.counters,
            stopped: self.stopped,
            loss: self.loss,
            evaluation: self.evaluation,
        })
    }

    /// Waits for the save under way, the last one.
    fn finish_saving(&mut self) -> Result<(), TrainError> {
        let sink = &mut *self.watcher.sink;
        sink.event(TrainEvent::Saving);
        let alive = &mut || sink.event(TrainEvent::Saving);
        let last = self.checkpoints.finish(self.engine, alive)?;
        self.tell(last, Some(self.counters.step));
        Ok(())
    }

    /// Saves the last step, which its storage did not take for the reason `error`, where there is room.
    fn save_elsewhere(
        &mut self,
        point: Option<ResumePoint>,
        error: TrainError,
    ) -> Result<(), TrainError> {
        let step = self.counters.step;
        let leaves = |_: &ResumePoint| (self.watcher.leave_storage)(&error.to_string());
        let Some(point) = point.filter(leaves) else {
            return Err(error);
        };
        self.save(&point, Some(step))?;
        self.finish_saving()?;
        self.checkpoints.last_problem(step).map_or(Ok(()), Err)
    }
}

/// All ranks' requests, and how the save under way ended, if it has.
fn agree(
    engine: &Engine,
    checkpoints: &mut Checkpointer,
    requests: Requests,
) -> Result<(Requests, Option<SaveOutcome>), TrainError> {
    let own = Agreement {
        requests,
        stage: checkpoints.stage(),
    };
    let agreed = own.reach(engine.world.as_ref(), engine.device)?;
    let ended = checkpoints.advance(engine, agreed.stage)?;
    Ok((agreed.requests, ended))
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
    profiler.write(engine.world.rank())?;
    // All at the same time, as they compute at the same time.
    engine.world.barrier()?.wait()?;
    let tokens = micro_batches.first().map_or(0, |micro| micro.tokens);
    let shapes = gemm_floor::shapes(&engine.dimensions(), tokens);
    let kind = engine.strategy.precision.matmul;
    let products = gemm_floor::measure(&shapes, kind, engine.device, 3);
    Ok(profiler.table(&products, micro_batches.len()))
}
