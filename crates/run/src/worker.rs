//! A worker's side: join the mesh, build the engine, continue or begin, train.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_checkpoint::{CheckpointName, RunDir, TrainState};
use tandem_comm::Observer;
use tandem_data::{Loader, LoaderOptions, Position, Share};
use tandem_launch::client::ControlClient;
use tandem_launch::env::WorkerEnv;
use tandem_launch::experiment;
use tandem_launch::protocol::{Metrics, WorkerEvent};
use tandem_parallel::RandomInit;
use tandem_trainer::{
    CheckpointSetup, Checkpointer, Engine, EventSink, LoopEnd, LoopSettings, Profiler, Recorder,
    Requests, RunCounters, TrainEvent, VALIDATION, Validation, ValidationState, Watcher,
    train_loop,
};

use crate::engine::{Purpose, engine};
use crate::environment::Environment;
use crate::failure::{Failure, Outcome};
use crate::identity::identity;
use crate::limits;
use crate::model_files;
use crate::prepare::{Prepared, check_memory, prepare};
use crate::ranks::Ranks;
use crate::resume::{Origin, Resumed, resume};
use crate::session::Ended;
use crate::show::reporter::{Reporter, saved_metrics};
use crate::show::{screen, summary};
use crate::spec::{Init, RunSpec};
use crate::storage::{Storage, folder_lost, nothing_to_continue};

/// Trains to the end, or until it is asked to stop.
pub fn run(
    spec: &RunSpec,
    env: &WorkerEnv,
    control: &ControlClient,
    environment: &Environment,
) -> Outcome<Ended> {
    if control.is_connected() {
        control
            .stop_flag()
            .set_by_hang_up()
            .map_err(cannot_handle)?;
    }
    // Again when ranks meet, which is after all that takes long.
    limits::check_own(env)?;
    let mut reporter = Reporter::new(control, env.rank, spec, environment.checkpoint.is_none());
    reporter.event(TrainEvent::Phase("preparing".to_owned()));
    let prepared = prepare(spec, environment, None, &mut reporter)?;
    reporter.event(TrainEvent::Phase("joining".to_owned()));
    let ranks = Ranks::join(env, &spec.compute.engine, &spec.cluster.network)?;
    let worker = Worker {
        spec,
        env,
        environment,
        prepared: &prepared,
        ranks: &ranks,
        control,
        step: Cell::new(0),
    };
    let result = worker.train(&mut reporter);
    if let Err(failure) = &result
        && !failure.secondary
    {
        // Peers stop waiting at once, and know why.
        ranks.world.abort(&failure.message);
    }
    result.map_err(|failure| failure.at_step(worker.step.get()))
}

/// One rank, ready to train.
struct Worker<'a> {
    spec: &'a RunSpec,
    env: &'a WorkerEnv,
    environment: &'a Environment,
    prepared: &'a Prepared,
    ranks: &'a Ranks,
    control: &'a ControlClient,
    /// The step that is being done.
    step: Cell<u64>,
}

/// Where a run begins or goes on.
struct Start {
    /// The experiment, which rank 0 keeps.
    run: Option<RunDir>,
    /// What its checkpoints say of the run besides progress.
    identity: TrainState,
    /// The progress so far.
    state: TrainState,
    /// Where that comes from.
    resumed: Option<Resumed>,
}

impl Worker<'_> {
    fn train(&self, reporter: &mut Reporter<'_>) -> Outcome<Ended> {
        check_memory(&self.prepared.model, self.env.local_world_size)?;
        reporter.event(TrainEvent::Phase("loading".to_owned()));
        let seed = self.spec.identity.selection.seed;
        let adapter = self.prepared.model.adapter.as_ref();
        let lora = adapter.map(|adapter| (adapter.lora.clone(), seed));
        let mut engine = engine(
            &self.spec.compute.engine,
            &self.prepared.model.config,
            self.prepared.model.strategy.clone(),
            self.spec.identity.selection.data.seq_length,
            self.ranks,
            lora.as_ref(),
            Purpose::Training,
        )?;
        engine.set_z_loss(self.spec.compute.training.z_loss);
        if let Some(coefficient) = self.spec.compute.training.router_aux_loss_coef {
            engine.set_balance(coefficient);
        }
        let storage = self.storage()?.watched(&self.spec.output, self.ranks)?;
        self.profile(&mut engine, &storage);
        let start = self.start(&mut engine, &storage, reporter)?;
        let end = self.train_from(start, &mut engine, &storage, reporter)?;
        // Nobody leaves while another rank may still be reading its memory.
        self.ranks.barrier()?;
        Ok(ended(&end))
    }

    /// Loads the newest checkpoint, or first weights.
    fn start(
        &self,
        engine: &mut Engine,
        storage: &Storage,
        reporter: &mut Reporter<'_>,
    ) -> Outcome<Start> {
        let Self { spec, prepared, .. } = self;
        let run = self.first_rank_opens(storage)?;
        let identity = identity(spec, prepared)?;
        if prepared.model.adapter.is_some() {
            // Checkpoints hold the adapters alone.
            self.load(engine)?;
        }
        let resumed = resume(
            engine,
            self.ranks,
            storage,
            run.as_ref(),
            &Origin {
                identity: &identity,
                prepared,
                chosen: self.chosen(run.as_ref())?,
                resumed_at: self.environment.resumed_at,
                fallback: spec.output.local.resume_fallback,
            },
            reporter,
        )?;
        let state = match &resumed {
            Some(resumed) => resumed.state.clone(),
            None => {
                if let Some(name) = spec.output.experiment.name.continued() {
                    return Err(nothing_to_continue(name, &storage.location));
                }
                if let Some(run) = &run {
                    // Wherever there is a checkpoint, they are there already.
                    model_files::keep(run, &prepared.model.model_dir, &prepared.model.config)?;
                }
                match &prepared.model.adapter {
                    None => self.load(engine)?,
                    Some(adapter) => adapter.load(engine, spec.identity.selection.seed)?,
                }
                TrainState::default()
            }
        };
        Ok(Start {
            run,
            identity,
            state,
            resumed,
        })
    }

    /// The checkpoint that the user has named. A launcher that starts workers again would begin at it again and again, so
    /// there it must be the newest, which is what the run goes on from anyway.
    fn chosen(&self, run: Option<&RunDir>) -> Outcome<Option<&CheckpointName>> {
        let Some(chosen) = &self.spec.output.experiment.checkpoint else {
            return Ok(None);
        };
        if self.environment.resumed_at.is_some() {
            return Ok(Some(chosen));
        }
        match run {
            Some(run) if run.latest().is_none_or(|latest| latest.name != *chosen) => {
                Err(Failure::usage(format!(
                    "--resume_from {chosen}: under a launcher, a run goes on from the newest of its checkpoints; leave the \
                     checkpoint's name out, or start with --num_workers and no launcher"
                )))
            }
            _ => Ok(None),
        }
    }

    /// The loop, from where the run stands to its last step.
    fn train_from(
        &self,
        start: Start,
        engine: &mut Engine,
        storage: &Storage,
        reporter: &mut Reporter<'_>,
    ) -> Outcome<LoopEnd> {
        let state = &start.state;
        let next = Position {
            epoch: state.epoch,
            sample: state.next_sample,
        };
        let settings = self.settings(state, next);
        let mut recorder = self.recorder(storage, state.global_step)?;
        if self.env.rank == 0 && matches!(reporter, Reporter::Terminal(_)) {
            if let Err(error) = screen::keep_log(&storage.run_dir) {
                tracing::warn!(%error, "this run's lines are not kept");
            }
            let lines = summary::lines(
                self.spec,
                self.prepared,
                &storage.location,
                Some(self.ranks.libtorch),
            );
            reporter.event(TrainEvent::Summary(lines));
        }
        if let Some(resumed) = &start.resumed {
            self.report_again(resumed);
        }
        let validation = self.validation(state)?;
        let mut loader = self.loader(engine.coords.dp_rank, next)?;
        let counters = RunCounters {
            step: state.global_step,
            tokens_seen: state.tokens_seen,
            samples_seen: state.next_global_sample,
        };
        if !self.control.is_connected() {
            // Nobody translates signals into commands, so they come here (torchrun, Slurm, Kubernetes). Not before: as long as
            // there is nothing to save, a signal ends this process at once.
            self.control
                .stop_flag()
                .set_by_signals()
                .map_err(cannot_handle)?;
        }
        let mut checkpoints = self.checkpointer(start, engine, storage);
        let look = Look::at(storage);
        let mut watcher = Watcher {
            sink: reporter,
            recorder: &mut recorder,
            on_step: &|step| {
                self.step.set(step);
                self.ranks.world.set_step(step);
            },
            requests: &|| Requests {
                stop: self.control.stop_requested() || look.is_lost(),
                save_now: self.control.take_save_now(),
            },
            leave_storage: &|why| storage.leave(why),
        };
        let end = train_loop(
            engine,
            &mut loader,
            &settings,
            &mut checkpoints,
            counters,
            validation,
            &mut watcher,
        );
        match (storage.lost(), end) {
            (None, end) => end.map_err(Failure::train),
            // A peer's failure is the peer's to explain.
            (Some(_), Err(error)) if error.comm_error().is_some() => Err(Failure::train(error)),
            (Some(lost), _) => Err(folder_lost(lost, checkpoints.has_saved(self.step.get()))),
        }
    }

    fn checkpointer(&self, start: Start, engine: &Engine, storage: &Storage) -> Checkpointer {
        let resumed = start.resumed.as_ref();
        Checkpointer::new(CheckpointSetup {
            store: storage.store.clone(),
            keeps_list: self.environment.checkpoint.is_none(),
            tensors: engine.tensor_specs(),
            rule: self.spec.checkpoints.saving.rule(),
            resumed_step: resumed.map(|resumed| resumed.state.global_step),
            run: start.run,
            identity: start.identity,
        })
    }

    fn settings(&self, state: &TrainState, next: Position) -> LoopSettings {
        let training = &self.spec.compute.training;
        let steps_left = self.prepared.sampler.steps_left(next);
        let last_step = state.global_step.saturating_add(steps_left);
        let last_step = match training.max_steps {
            0 => last_step,
            limit => last_step.min(limit),
        };
        LoopSettings {
            learning_rate: training.learning_rate(last_step),
            rule: training.update_rule(),
            last_step,
            check_interval: training.check_interval,
        }
    }

    fn loader(&self, dp_rank: usize, start: Position) -> Outcome<Loader> {
        let training = &self.spec.compute.training;
        let share = Share {
            dp_rank,
            dp_size: self.spec.compute.engine.mesh.dp_size(),
            batch_size: training.batch_size,
            micro_batches: training.gradient_accumulation_steps,
        };
        let Prepared {
            dataset, sampler, ..
        } = self.prepared;
        let options = LoaderOptions { share, start };
        Loader::new(dataset.clone(), sampler.clone(), options).map_err(Failure::other)
    }

    /// The evaluations of the run, going on from how they went so far.
    fn validation(&self, state: &TrainState) -> Outcome<Option<Validation>> {
        let Some(prepared) = &self.prepared.evaluation else {
            return Ok(None);
        };
        let saved = state.extra.get(VALIDATION).cloned();
        let saved: Option<ValidationState> = saved
            .map(serde_json::from_value)
            .transpose()
            .map_err(|error| {
                Failure::other(format!(
                    "the checkpoint of step {} is damaged: what it says of evaluations: {error}",
                    state.global_step
                ))
            })?;
        let rows = prepared.set.rows_used();
        let data = format!("{}-{rows}", prepared.data.dataset.fingerprint());
        let rule = self.spec.compute.evaluation.rule();
        Ok(Some(Validation::new(
            prepared.set.clone(),
            rule,
            data,
            saved,
        )))
    }

    fn recorder(&self, storage: &Storage, step: u64) -> Outcome<Recorder> {
        if self.env.rank != 0 {
            return Ok(Recorder::none());
        }
        let history = self.spec.output.local.loss_output_dir.as_deref();
        Recorder::create(&storage.run_dir, history, step).map_err(Failure::train)
    }

    fn profile(&self, engine: &mut Engine, storage: &Storage) {
        let steps = self.spec.output.shown.profile;
        if steps == 0 {
            return;
        }
        let folder = storage.run_dir.join("profile");
        let profiler = Arc::new(Profiler::new(steps, folder, engine.device));
        self.ranks
            .world
            .observe(Arc::clone(&profiler) as Arc<dyn Observer>);
        engine.profiler = Some(profiler);
    }

    /// Rank 0 opens the experiment for all, and removes what a save or deletion that was cut off has left.
    fn first_rank_opens(&self, storage: &Storage) -> Outcome<Option<RunDir>> {
        if self.env.rank != 0 {
            return Ok(None);
        }
        let mut run = storage.run(self.spec.checkpoints.kept.retention())?;
        for warning in run.warnings() {
            tracing::warn!("{warning}");
        }
        // All ranks of an earlier attempt are gone: this one has met its own.
        if self.environment.checkpoint.is_some() {
            run.remove_torn().map_err(Failure::other)?;
        } else {
            run.clean().map_err(Failure::other)?;
        }
        Ok(Some(run))
    }

    /// Checkpoints that were committed, but of which the supervisor never heard, are reported once more: those that nobody
    /// has on record would never be deleted.
    fn report_again(&self, resumed: &Resumed) {
        let Some(known) = &self.environment.checkpoint else {
            return;
        };
        let report = |name: &String, metrics| {
            self.control.send(&WorkerEvent::Report {
                metrics,
                checkpoint_dir_name: Some(name.clone()),
            });
        };
        // Names ascend with time.
        for name in resumed.older.iter().filter(|name| *name > known) {
            report(name, Metrics::new());
        }
        if *known != resumed.name {
            report(&resumed.name, saved_metrics(&resumed.state.metrics));
        }
    }

    /// The first weights.
    fn load(&self, engine: &mut Engine) -> Outcome<()> {
        let prepared = self.prepared;
        match self.spec.compute.training.init {
            Init::Random => engine.load(&RandomInit {
                seed: self.spec.identity.selection.seed,
                initializer_range: prepared.model.config.initializer_range,
            }),
            Init::Pretrained => match &prepared.model.pretrained {
                Some(weights) => engine.load(weights),
                // There was a checkpoint when this process began, so they were not opened.
                None => {
                    return Err(Failure::other(
                        "the run's checkpoints were removed while it was starting: start it again",
                    ));
                }
            },
        }
        .map_err(Failure::train)
    }

    /// The run's places: the controller's, or (under another launcher) those of a name that rank 0 gives for all.
    fn storage(&self) -> Outcome<Storage> {
        let (output, environment) = (&self.spec.output, self.environment);
        if let Some(dir) = &environment.run_dir {
            // In object storage, the supervisor's name of the folder is no path here.
            return match dir.rsplit_once('/') {
                Some((_, name)) if dir.contains("://") => Storage::open(output, environment, name),
                _ => Storage::at(output, environment, PathBuf::from(dir)),
            };
        }
        let name = match output.experiment.name.given() {
            Some(name) => name.to_owned(),
            None => {
                let entry_point = self.spec.compute.engine.strategy.entry_point();
                let own = experiment::generated_name(entry_point);
                self.ranks.text_of_first(&own)?
            }
        };
        Storage::open(output, environment, &name)
    }
}

/// Looks now and then whether the run's folder is there: the next save may be hours away, and all until then be lost.
struct Look<'a> {
    storage: &'a Storage,
    last: Cell<Instant>,
}

/// A look costs two questions to the file system.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

impl<'a> Look<'a> {
    fn at(storage: &'a Storage) -> Self {
        Self {
            storage,
            last: Cell::new(Instant::now()),
        }
    }

    fn is_lost(&self) -> bool {
        if self.last.get().elapsed() < LOOK_INTERVAL {
            return false;
        }
        self.last.set(Instant::now());
        self.storage.lost().is_some()
    }
}

fn cannot_handle(error: std::io::Error) -> Failure {
    Failure::other(format!("cannot install signal handlers: {error}"))
}

fn ended(end: &LoopEnd) -> Ended {
    if end.stopped {
        return Ended::StoppedAfterSaving;
    }
    let mut metrics: Metrics = [
        ("step", end.counters.step as f64),
        ("tokens_seen", end.counters.tokens_seen as f64),
    ]
    .into_iter()
    .collect();
    if let Some(loss) = end.loss {
        metrics.insert("loss", loss);
    }
    if let Some(evaluation) = end.evaluation {
        metrics.insert("eval_loss", evaluation.eval_loss);
        metrics.insert("perplexity", evaluation.perplexity);
    }
    Ended::Finished(metrics)
}
