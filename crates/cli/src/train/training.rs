//! A worker's side: join the mesh, build the engine, train.

use std::path::PathBuf;

use tandem_checkpoint::HfWeights;
use tandem_data::{Loader, LoaderOptions, Position as DataPosition, Share};
use tandem_launch::client::ControlClient;
use tandem_launch::env::{RUN_DIR, WorkerEnv, process_environment};
use tandem_launch::experiment;
use tandem_launch::protocol::Metrics;
use tandem_mesh::DeviceMesh;
use tandem_parallel::RandomInit;
use tandem_trainer::{
    Engine, EngineSetup, Event, EventSink, LearningRate, LoopSettings, Position, Recorder, Watcher,
    train_loop,
};

use crate::args::InitChoice;
use crate::failure::{Failure, Outcome};
use crate::prepare::{Prepared, check_memory, prepare};
use crate::reporter::Reporter;
use crate::request::Request;
use crate::summary;
use crate::weights::HfSource;
use crate::worker::{HEAD_CHUNK_ROWS, Ranks};

/// Trains to the end. Returns the final values.
pub fn run(request: &Request, env: &WorkerEnv, control: &ControlClient) -> Outcome<Metrics> {
    let mesh = request.check()?;
    let common = request.common();
    let mut reporter = Reporter::new(control, env.rank, common.log_interval);
    reporter.event(Event::Phase("preparing".to_owned()));
    let prepared = prepare(request, mesh, &mut reporter)?;
    reporter.event(Event::Phase("joining".to_owned()));
    let ranks = Ranks::join(env, mesh, common.device, common.comm_timeout_s)?;
    let mut last_step = 0;
    let result = train(
        request,
        env,
        mesh,
        &prepared,
        &ranks,
        &mut reporter,
        &mut last_step,
    );
    if let Err(failure) = &result
        && !failure.secondary
    {
        // Peers stop waiting at once, and know why.
        ranks.world.abort(&failure.message);
    }
    result.map_err(|failure| failure.at_step(last_step))
}

fn train(
    request: &Request,
    env: &WorkerEnv,
    mesh: DeviceMesh,
    prepared: &Prepared,
    ranks: &Ranks,
    reporter: &mut Reporter<'_>,
    current_step: &mut u64,
) -> Outcome<Metrics> {
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
    load(request, prepared, &mut engine)?;

    let run_dir = run_dir(request, env, ranks)?;
    let mut recorder = match env.rank {
        0 => {
            Recorder::create(&run_dir, common.loss_output_dir.as_deref()).map_err(Failure::train)?
        }
        _ => Recorder::none(),
    };
    if env.rank == 0 && matches!(reporter, Reporter::Terminal(_)) {
        let lines = summary::lines(request, mesh, prepared, &run_dir.display().to_string());
        reporter.event(Event::Summary(lines));
    }
    let share = Share {
        dp_rank: engine.coords.dp_rank,
        dp_size: mesh.dp_size(),
        batch_size: common.batch_size,
        micro_batches: common.gradient_accumulation_steps,
    };
    let options = LoaderOptions {
        share,
        start: DataPosition::default(),
    };
    let mut loader = Loader::new(prepared.dataset.clone(), prepared.sampler.clone(), options)
        .map_err(Failure::other)?;
    let settings = LoopSettings {
        learning_rate: LearningRate {
            peak: common.learning_rate,
            schedule: common.lr_scheduler,
            warmup_steps: common.warmup_steps,
            total_steps: prepared.total_steps,
        },
        rule: request.update_rule(),
        last_step: prepared.total_steps,
        check_interval: common.check_interval,
    };
    let step_cell = std::cell::Cell::new(0);
    let result = train_loop(
        &mut engine,
        &mut loader,
        &settings,
        Position::default(),
        &mut Watcher {
            sink: reporter,
            recorder: &mut recorder,
            on_step: &|step| {
                step_cell.set(step);
                ranks.world.set_step(step);
            },
        },
    );
    *current_step = step_cell.get();
    let position = result.map_err(Failure::train)?;
    // Nobody leaves while another rank may still be reading its memory.
    ranks
        .everyone
        .barrier()
        .and_then(|work| work.wait())
        .map_err(Failure::comm)?;
    Ok([
        ("step", position.step as f64),
        ("tokens_seen", position.tokens_seen as f64),
    ]
    .into_iter()
    .collect())
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

/// The run's folder: the controller's, or (under another launcher) one that rank 0 names for all.
fn run_dir(request: &Request, env: &WorkerEnv, ranks: &Ranks) -> Outcome<PathBuf> {
    if let Some(dir) = process_environment(RUN_DIR) {
        return Ok(PathBuf::from(dir));
    }
    let common = request.common();
    let name = match &common.experiment_name {
        Some(name) => name.clone(),
        None => {
            let own = experiment::generated_name(request.entry_point());
            ranks.text_of_first(env.rank, &own)?
        }
    };
    experiment::create_run_dir(&common.storage_path, &name).map_err(Failure::other)
}
