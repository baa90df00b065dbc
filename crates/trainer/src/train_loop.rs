//! The loop around the step: batches in, metrics out, checks now and then.

use std::time::{Duration, Instant};

use tandem_comm::{ReduceOp, all_gather_numbers};
use tandem_data::BatchSource;
use tandem_model::ModuleTree;
use tandem_parallel::check_replicas;
use tandem_tensor::{Kind, Tensor, gemm_rate, memory};

use crate::agreement::{Agreement, Requests};
use crate::checkpointer::{Checkpointer, SaveOutcome};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::events::{Event, EventSink, StepMetrics};
use crate::flops;
use crate::micro_batch::MicroBatch;
use crate::profile::{self, Activity, span};
use crate::progress::{Position, Progress};
use crate::recorder::Recorder;
use crate::schedule::LearningRate;
use crate::train_step::{UpdateRule, train_step};

/// Between two looks at the memory of all ranks.
const MEMORY_INTERVAL: u64 = 10;

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
    pub position: Position,
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

/// Trains from `position` to the last step or the end of the data, and saves when it is due, when it is asked for, and in
/// the end.
///
/// # Errors
/// Whatever ends a step, or a last checkpoint that cannot be written; the metrics of all finished steps are on disk then.
pub fn train_loop(
    engine: &mut Engine,
    source: &mut dyn BatchSource,
    settings: &LoopSettings,
    checkpoints: &mut Checkpointer,
    position: Position,
    watcher: &mut Watcher<'_>,
) -> Result<LoopEnd, TrainError> {
    let mut position = position;
    let (mut stopped, mut loss) = (false, None);
    let mut unsaved = None;
    let mut saving = Duration::ZERO;
    let mesh_gemm_rate = measure_gemm_rate(engine)?;
    let tree = ModuleTree::new(&engine.config);
    let mut peaks = Vec::new();
    watcher.sink.event(Event::Begin {
        first_step: position.step + 1,
        last_step: settings.last_step,
    });
    let first_step = position.step + 1;
    let mut last_end = Instant::now();
    while position.step < settings.last_step && !stopped {
        let step = position.step + 1;
        if let Some(profiler) = &engine.profiler {
            profiler.begin_step(step, first_step, settings.last_step);
        }
        let data = span(&engine.profiler, Activity::Data);
        let batches = source
            .next_step()
            .map_err(|e| TrainError::Data(Box::new(e)))?;
        let Some(batches) = batches else { break };
        let epoch = batches.first().map_or(0, |batch| batch.epoch);
        let micro_batches: Vec<MicroBatch> = batches
            .iter()
            .map(|b| MicroBatch::new(&b.input_ids, &b.labels, engine.seq, b.hash, engine.device))
            .collect();
        drop(data);
        (watcher.on_step)(step);
        let lr = settings.learning_rate.at(step);
        let report = train_step(engine, &micro_batches, lr, &settings.rule, step)?;
        if settings.check_interval > 0 && step.is_multiple_of(settings.check_interval) {
            settle(engine)?;
            let (tp, dp) = (engine.tp.group.as_ref(), engine.dp.as_ref());
            check_replicas(&engine.units, tp, dp, step, engine.device)?;
        }

        checkpoints.add_wait(report.waited_for_copy);
        // The last step of an epoch may have fewer rows than the ranks have room for.
        let samples = batches.first().map_or(0, |batch| batch.step_samples);
        let tokens = samples * engine.seq as u64;
        position.step = step;
        position.tokens_seen += tokens;
        position.samples_seen += samples;
        if step == 1 || step.is_multiple_of(MEMORY_INTERVAL) || step == settings.last_step {
            peaks = peak_memory_mb(engine)?;
        }
        let seconds = last_end.elapsed().as_secs_f64();
        last_end = Instant::now();
        let flops = flops::per_step(&engine.config, &tree, tokens, engine.seq as u64);
        let metrics = StepMetrics {
            step,
            epoch,
            loss: report.loss,
            lr,
            grad_norm: report.grad_norm,
            tokens_per_s: tokens as f64 / seconds,
            step_time_s: seconds,
            saving_s: (std::mem::take(&mut saving) + report.waited_for_copy).as_secs_f64(),
            tokens_seen: position.tokens_seen,
            n_tokens: report.n_tokens,
            gemm_fraction: flops / seconds / mesh_gemm_rate,
            peak_memory_mb: peaks.clone(),
        };
        watcher.recorder.step(&metrics)?;
        watcher.sink.event(Event::Step(metrics.clone()));
        loss = Some(metrics.loss);
        let progress = Progress {
            position,
            next: source.position(),
            metrics,
        };

        let own = Agreement {
            requests: (watcher.requests)(),
            stage: checkpoints.stage(),
        };
        let agreed = own.reach(engine.world.as_ref(), engine.device)?;
        tell(
            checkpoints.advance(engine, agreed.stage)?,
            None,
            watcher.sink,
        );
        let is_last = step == settings.last_step;
        stopped = agreed.requests.stop && !is_last;
        let is_asked_for = agreed.requests.save_now || stopped || is_last;
        let ends_epoch = batches.iter().any(|batch| batch.ends_epoch);
        if checkpoints.is_due(step, is_asked_for || ends_epoch) {
            let begun = Instant::now();
            let _span = span(&engine.profiler, Activity::Save);
            let end = (stopped || is_last).then_some(step);
            save(engine, checkpoints, &progress, end, watcher.sink)?;
            saving = begun.elapsed();
            unsaved = None;
        } else {
            unsaved = Some(progress);
        }
        let is_end = stopped || is_last;
        if let Some(profiler) = engine.profiler.take_if(|it| it.end_step(is_end)) {
            let tokens = micro_batches.first().map_or(0, |micro| micro.tokens);
            let lines = profile::finish(engine, &profiler, tokens, micro_batches.len())?;
            watcher.sink.event(Event::Profile(lines));
            last_end = Instant::now();
        }
    }
    let end = Some(position.step);
    if let Some(progress) = unsaved {
        save(engine, checkpoints, &progress, end, watcher.sink)?;
    }
    watcher.sink.event(Event::Saving);
    let last = checkpoints.finish(engine, &mut || watcher.sink.event(Event::Saving))?;
    tell(last, end, watcher.sink);
    // Without a checkpoint of its last step, the work since the one before would be lost.
    if let Some(error) = checkpoints.last_problem(position.step) {
        return Err(error);
    }
    watcher.recorder.finish()?;
    watcher.sink.event(Event::End);
    Ok(LoopEnd {
        position,
        stopped,
        loss,
    })
}

fn save(
    engine: &Engine,
    checkpoints: &mut Checkpointer,
    progress: &Progress,
    end: Option<u64>,
    sink: &mut dyn EventSink,
) -> Result<(), TrainError> {
    let ended = checkpoints.save(engine, progress, &mut || sink.event(Event::Saving))?;
    for outcome in ended {
        tell(Some(outcome), end, sink);
    }
    Ok(())
}

/// Tells how a save ended. That the run's last one failed, after the step `end`, is an error, which tells it itself.
fn tell(outcome: Option<SaveOutcome>, end: Option<u64>, sink: &mut dyn EventSink) {
    match outcome {
        Some(SaveOutcome::Saved(saved)) => sink.event(Event::Saved(saved)),
        Some(SaveOutcome::Failed { step, .. }) if Some(step) == end => {}
        Some(SaveOutcome::Failed { step, problem }) => {
            sink.event(Event::SaveFailed { step, problem });
        }
        None => {}
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

/// What the mesh's ranks can do together, all measuring at once: ranks that share cores share the rate.
fn measure_gemm_rate(engine: &Engine) -> Result<f64, TrainError> {
    engine.world.barrier()?.wait()?;
    let kind = engine.strategy.precision.matmul;
    let own = gemm_rate::measure(256, 1024, 1024, kind, engine.device, 5);
    let sum = Tensor::from_slice(&[own])
        .to_kind(Kind::Double)
        .to_device(engine.device);
    engine.world.all_reduce(&sum, ReduceOp::Sum)?.wait()?;
    Ok(sum.get(0).double_value())
}

/// Every rank's largest resident set so far.
fn peak_memory_mb(engine: &Engine) -> Result<Vec<f64>, TrainError> {
    let own = memory::peak_resident_bytes().unwrap_or(0) as f64 / 1e6;
    Ok(all_gather_numbers(engine.world.as_ref(), &[own], engine.device)?.concat())
}
