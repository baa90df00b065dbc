//! `tandem plan --operators`: what one layer launches and moves on a GPU, recorded on a pretended one, beside the count of a compiled
//! PyTorch layer.

mod counted;

use std::ffi::OsString;

use tandem_comm::Transport;
use tandem_launch::env::WorkerEnv;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_plan::{Candidate, CompiledLayer, recompute_name};
use tandem_run::engine::{Purpose, engine};
use tandem_run::environment::Environment;
use tandem_run::facts::model_config;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::ranks::Ranks;
use tandem_run::spec::{EngineSpec, Network};
use tandem_tensor::torch::pretend;
use tandem_tensor::torch::recorder::{self, Call, Detail};
use tandem_tensor::{DeviceChoice, memory};
use tandem_trainer::{Engine, MicroBatch, UpdateRule, train_step};

use super::PlanArgs;
use crate::flags::choices::Dtype;
use crate::measuring::{leave, run_workers, spec};
use counted::Recorded;

pub(super) use counted::Operators;

/// Tokens of a row of the recorded steps.
const SEQ: usize = 32;

/// Rows of the vocabulary that are left: the layer has nothing to do with it.
const VOCABULARY: usize = 512;

/// Bytes that a parameter takes at most while it is recorded: parameter, master weight, gradient, moments, and what the update computes with.
const BYTES_PER_PARAMETER: u64 = 30;

/// Starts a worker that records the layer as `best` has it.
pub(super) fn run(
    args: &PlanArgs,
    line: &[OsString],
    config: &ModelConfig,
    best: &Candidate,
) -> Outcome<Operators> {
    let cut = cut(config.clone())?;
    let parameters = ModuleTree::new(&cut).numel() as u64;
    let needed = BYTES_PER_PARAMETER * parameters;
    if let Some(available) = memory::available_bytes()
        && available < needed
    {
        return Err(Failure::usage(format!(
            "--operators computes one layer, whose {parameters} parameters take {:.1} GB here, and {:.1} GB are free: give a smaller model, or \
             run it on a machine with more memory",
            needed as f64 / 1e9,
            available as f64 / 1e9
        )));
    }
    let scratch = tempfile::tempdir().map_err(Failure::other)?;
    let recompute = best.settings.recompute;
    let mut line = line.to_vec();
    line.push(format!("--recompute={}", recompute_name(recompute)).into());
    let place = scratch.path();
    let text =
        run_workers(1, DeviceChoice::Cpu, Transport::Auto, &line, place)?.map_err(|code| {
            Failure::other(format!(
                "the worker that records a layer ended with exit code {code}"
            ))
        })?;
    let recorded: Vec<Recorded> = serde_json::from_str(&text).map_err(Failure::other)?;
    let element_bytes = match args.dtype {
        Dtype::Fp32 => 4,
        Dtype::Bf16 => 2,
    };
    let compiled = match args.lora_r {
        0 => CompiledLayer::of(&cut, recompute, element_bytes),
        _ => None,
    };
    let tokens = (best.settings.batch_size * best.settings.seq_length) as u64;
    Ok(Operators::new(
        tokens,
        recompute,
        parameters,
        recorded,
        compiled.as_ref(),
    ))
}

/// The model with one layer and a small vocabulary.
fn cut(config: ModelConfig) -> Outcome<ModelConfig> {
    let mut config = config.truncated(1).map_err(Failure::other)?;
    config.vocab_size = config.vocab_size.min(VOCABULARY);
    Ok(config)
}

/// What the worker does: two steps, with one row of tokens and with two. Weights stay zero, as they are allocated: operators and their
/// sizes do not depend on them.
pub(super) fn run_worker(
    args: &PlanArgs,
    env: &WorkerEnv,
    environment: &Environment,
) -> Outcome<()> {
    let _pretended = pretend::cuda();
    let config = cut(model_config(&args.model_name, args.num_layers)?)?;
    let spec = EngineSpec {
        recompute: args.recompute.map(Into::into),
        ..spec(1, DeviceChoice::Cuda, args.dtype.into())?
    };
    let ranks = Ranks::join(env, &spec, &Network::default())?;
    let strategy = spec.strategy_for(&config, &ModuleTree::new(&config))?;
    let lora = args.lora()?.map(|lora| (lora, 0));
    let mut engine = engine(
        &spec,
        &config,
        strategy,
        SEQ,
        &ranks,
        lora.as_ref(),
        Purpose::Training,
    )?;
    let one_row = step(&mut engine, 1)?;
    let two_rows = step(&mut engine, 2)?;
    let recorded = counted::by_operator(&one_row, &two_rows, SEQ as u64);
    let text = serde_json::to_string(&recorded).map_err(Failure::other)?;
    leave(environment, &text)
}

/// The operators of a step over so many rows.
fn step(engine: &mut Engine, rows: usize) -> Outcome<Vec<Call>> {
    let vocabulary = engine.config.vocab_size;
    let ids: Vec<i64> = (0..rows * SEQ).map(|it| (it % vocabulary) as i64).collect();
    let batch = MicroBatch::new(&ids, &ids, SEQ, 0, engine.device);
    let (report, calls) = recorder::record(Detail::Counts, || {
        train_step(engine, &[batch], 1e-5, &UpdateRule::USUAL, rows as u64)
    });
    report.map_err(Failure::train)?;
    Ok(calls)
}
