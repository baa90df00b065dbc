//! A worker's side: join the mesh, build the engine, train.

use std::path::PathBuf;
use std::sync::Arc;

use tandem_checkpoint::{HfWeights, RunDir, TrainState};
use tandem_comm::Observer;
use tandem_data::{Loader, LoaderOptions, Position as DataPosition, Share};
use tandem_launch::client::ControlClient;
use tandem_launch::env::{CHECKPOINT, RUN_DIR, WorkerEnv, process_environment};
use tandem_launch::experiment;
use tandem_launch::protocol::{Event as Message, Metrics};
use tandem_mesh::DeviceMesh;
use tandem_parallel::RandomInit;
use tandem_trainer::{
    CheckpointSetup, Checkpointer, Engine, EngineSetup, Event, EventSink, LearningRate,
    LoopSettings, Position, Profiler, Recorder, Requests, Watcher, train_loop,
};

use crate::args::InitChoice;
use crate::failure::{Failure, Outcome};
use crate::prepare::{Prepared, check_memory, prepare};
use crate::reporter::{Reporter, saved_metrics};
use crate::request::Request;
use crate::session::Ended;
use crate::storage::Storage;
use crate::summary;
use crate::train::identity::identity;
use crate::train::model_files;
use crate::train::resume::{Resumed, resume};
use crate::weights::HfSource;
use crate::worker::{HEAD_CHUNK_ROWS, Ranks};

/// Trains to the end, or until it is asked to stop.
pub fn run(request: &Request, env: &WorkerEnv, control: &ControlClient) -> Outcome<Ended> {
    let mesh = request.check()?;
    let common = request.common();
    if !control.is_connected() {
        // Nobody translates signals into commands, so they come here (torchrun, Slurm, Kubernetes).
        control
            .stop_flag()
            .set_by_signals()
            .map_err(|error| Failure::other(format!("cannot install signal handlers: {error}")))?;
    }
    let mut reporter = Reporter::new(control, env.rank, common.log_interval);
    reporter.event(Event::Phase("preparing".to_owned()));
    let prepared = prepare(request, mesh, &mut reporter)?;
    reporter.event(Event::Phase("joining".to_owned()));
    let ranks = Ranks::join(
        env,
        mesh,
        common.device,
        common.comm_timeout_s,
        common.cluster.network(),
    )?;
    let mut last_step = 0;
    let worker = Worker {
        request,
        env,
        mesh,
        prepared: &prepared,
        ranks: &ranks,
        control,
    };
    let result = train(&worker, &mut reporter, &mut last_step);
    if let Err(failure) = &result
        && !failure.secondary
    {
        // Peers stop waiting at once, and know why.
        ranks.world.abort(&failure.message);
    }
    result.map_err(|failure| failure.at_step(last_step))
}

/// One rank, ready to train.
struct Worker<'a> {
    request: &'a Request,
    env: &'a WorkerEnv,
    mesh: DeviceMesh,
    prepared: &'a Prepared,
    ranks: &'a Ranks,
    control: &'a ControlClient,
}

fn train(
    worker: &Worker<'_>,
    reporter: &mut Reporter<'_>,
    current_step: &mut u64,
) -> Outcome<Ended> {
    let &Worker {
        request,
        env,
        mesh,
        prepared,
        ranks,
        control,
    } = worker;
    let common = request.common();
    check_memory(prepared, env.local_world_size)?;
    reporter.event(Event::Phase("loading".to_owned()));
    let mut engine = Engine::new(EngineSetup {
        config: prepared.config.clone(),
        strategy: prepared.strategy.clone(),
        mesh,
        world: ranks.everyone.clone(),
        tp: ranks.tp.clone(),
        dp: ranks.dp.clone(),
        device: ranks.device,
        seq: common.seq_length,
        sequence_parallel: common.sequence_parallel,
        recompute: request.recompute(),
        head_chunk_rows: HEAD_CHUNK_ROWS,
    })
    .map_err(Failure::train)?;
    let storage = storage(request, ranks)?;
    if common.profile > 0 {
        let folder = storage.run_dir.join("profile");
        let profiler = Arc::new(Profiler::new(common.profile, folder));
        ranks
            .world
            .observe(Arc::clone(&profiler) as Arc<dyn Observer>);
        engine.profiler = Some(profiler);
    }
    let is_supervised = process_environment(CHECKPOINT).is_some();
    let run = first_rank_opens(request, env, &storage, is_supervised)?;
    let identity = identity(request, mesh, prepared);
    let resumed = resume(
        &mut engine,
        ranks,
        &storage,
        run.as_ref(),
        &identity,
        common.checkpoints.resume_fallback,
        reporter,
    )?;
    let start = match &resumed {
        Some(resumed) => &resumed.state,
        None => {
            if let Some(name) = &common.checkpoints.resume_from {
                return Err(Failure::usage(format!(
                    "--resume_from {name}: there is no checkpoint in {}",
                    storage.location
                )));
            }
            if let Some(run) = &run {
                // Wherever there is a checkpoint, they are there already.
                model_files::keep(run, &prepared.model_dir, &prepared.config)?;
            }
            load(request, prepared, &mut engine)?;
            &TrainState::default()
        }
    };
    let next = DataPosition {
        epoch: start.epoch,
        sample: start.next_sample,
    };
    let last_step = start.global_step + prepared.sampler.steps_left(next);
    let last_step = match common.max_steps {
        0 => last_step,
        limit => last_step.min(limit),
    };
    let run_dir = &storage.run_dir;
    let mut recorder = match env.rank {
        0 => Recorder::create(
            run_dir,
            common.loss_output_dir.as_deref(),
            start.global_step,
        )
        .map_err(Failure::train)?,
        _ => Recorder::none(),
    };
    if env.rank == 0 && matches!(reporter, Reporter::Terminal(_)) {
        let lines = summary::lines(request, mesh, prepared, &storage.location);
        reporter.event(Event::Summary(lines));
    }
    if let Some(resumed) = &resumed {
        report_again(resumed, control);
    }
    let share = Share {
        dp_rank: engine.coords.dp_rank,
        dp_size: mesh.dp_size(),
        batch_size: common.batch_size,
        micro_batches: common.gradient_accumulation_steps,
    };
    let options = LoaderOptions { share, start: next };
    let mut loader = Loader::new(prepared.dataset.clone(), prepared.sampler.clone(), options)
        .map_err(Failure::other)?;
    let settings = LoopSettings {
        learning_rate: LearningRate {
            peak: common.learning_rate,
            schedule: common.lr_scheduler,
            warmup_steps: common.warmup_steps,
            total_steps: last_step,
        },
        rule: request.update_rule(),
        last_step,
        check_interval: common.check_interval,
    };
    let position = Position {
        step: start.global_step,
        tokens_seen: start.tokens_seen,
        samples_seen: start.next_global_sample,
    };
    let mut checkpoints = Checkpointer::new(CheckpointSetup {
        store: storage.store.clone(),
        run,
        keeps_list: !is_supervised,
        tensors: engine.tensor_specs(),
        identity,
        rule: common.checkpoints.rule(),
        resumed_step: resumed.as_ref().map(|resumed| resumed.state.global_step),
    });
    let step_cell = std::cell::Cell::new(0);
    let result = train_loop(
        &mut engine,
        &mut loader,
        &settings,
        &mut checkpoints,
        position,
        &mut Watcher {
            sink: reporter,
            recorder: &mut recorder,
            on_step: &|step| {
                step_cell.set(step);
                ranks.world.set_step(step);
            },
            requests: &|| Requests {
                stop: control.stop_requested(),
                save_now: control.take_save_now(),
            },
        },
    );
    *current_step = step_cell.get();
    let end = result.map_err(Failure::train)?;
    // Nobody leaves while another rank may still be reading its memory.
    ranks
        .everyone
        .barrier()
        .and_then(|work| work.wait())
        .map_err(Failure::comm)?;
    let mut metrics: Metrics = [
        ("step", end.position.step as f64),
        ("tokens_seen", end.position.tokens_seen as f64),
    ]
    .into_iter()
    .collect();
    if let Some(loss) = end.loss {
        metrics.insert("loss", loss);
    }
    Ok(if end.stopped {
        Ended::StoppedAfterSaving
    } else {
        Ended::Finished(metrics)
    })
}

/// Rank 0 opens the experiment for all, and removes what a save or deletion that was cut off has left.
fn first_rank_opens(
    request: &Request,
    env: &WorkerEnv,
    storage: &Storage,
    is_supervised: bool,
) -> Outcome<Option<RunDir>> {
    if env.rank != 0 {
        return Ok(None);
    }
    let mut run = storage.run(request.common().checkpoints.retention())?;
    for warning in run.warnings() {
        tracing::warn!("{warning}");
    }
    // All ranks of an earlier attempt are gone: this one has met its own.
    if is_supervised {
        run.remove_torn().map_err(Failure::other)?;
    } else {
        run.clean().map_err(Failure::other)?;
    }
    Ok(Some(run))
}

/// Checkpoints that were committed, but of which the supervisor never heard, are reported once more: those that nobody has on
/// record would never be deleted.
fn report_again(resumed: &Resumed, control: &ControlClient) {
    let Some(known) = process_environment(CHECKPOINT) else {
        return;
    };
    // Names ascend with time.
    let unknown = |name: &&String| **name > known;
    for name in resumed.older.iter().filter(unknown) {
        control.send(&Message::Report {
            metrics: Metrics::new(),
            checkpoint_dir_name: Some(name.clone()),
        });
    }
    if known != resumed.name {
        control.send(&Message::Report {
            metrics: saved_metrics(&resumed.state.metrics),
            checkpoint_dir_name: Some(resumed.name.clone()),
        });
    }
}

fn load(request: &Request, prepared: &Prepared, engine: &mut Engine) -> Outcome<()> {
    let common = request.common();
    match common.init {
        InitChoice::Random => engine.load(&RandomInit {
            seed: common.seed,
            initializer_range: prepared.config.initializer_range,
        }),
        InitChoice::Pretrained => {
            let weights = HfWeights::open(&prepared.model_dir).map_err(Failure::other)?;
            engine.load(&HfSource::checked(
                &weights,
                &prepared.config,
                &prepared.tree,
            )?)
        }
    }
    .map_err(Failure::train)
}

/// The run's places: the controller's, or (under another launcher) those of a name that rank 0 gives for all.
fn storage(request: &Request, ranks: &Ranks) -> Outcome<Storage> {
    let common = request.common();
    if let Some(dir) = process_environment(RUN_DIR) {
        // In object storage, the supervisor's name of the folder is no path here.
        return match dir.rsplit_once('/') {
            Some((_, name)) if dir.contains("://") => Storage::open(common, name),
            _ => Storage::at(common, PathBuf::from(dir)),
        };
    }
    let name = match common.experiment() {
        Some(name) => name.to_owned(),
        None => {
            let own = experiment::generated_name(request.entry_point());
            ranks.text_of_first(&own)?
        }
    };
    Storage::open(common, &name)
}
