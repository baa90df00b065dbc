//! `tandem bench step`: whole training steps on random tokens, against the floor of their matrix products.

mod measurement;
mod operators;
mod shapes;

use std::ffi::OsString;
use std::ops::Add;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use tandem_comm::{Transport, all_gather_numbers};
use tandem_launch::env::WorkerEnv;
use tandem_launch::say;
use tandem_mesh::DeviceMesh;
use tandem_model::lora::{LoraConfig, LoraTargets};
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{RandomInit, Strategy};
use tandem_plan::{self as plan, Kernels, Memory, Settings, Share, StepTime, flops};
use tandem_run::engine::{Purpose, engine};
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::place::place;
use tandem_run::ranks::Ranks;
use tandem_run::spec::{EngineSpec, HEAD_CHUNK_ROWS, Network};
use tandem_tensor::torch::recorder::{self, Detail};
use tandem_tensor::torch::{cuda, pretend};
use tandem_tensor::{Device, DeviceChoice, Kind, device, memory};
use tandem_trainer::gemm_floor::{self, LinearTime};
use tandem_trainer::memory_floor;
use tandem_trainer::stopwatch::Seconds;
use tandem_trainer::{Engine, MicroBatch, UpdateRule, train_step};

use crate::flags::choices::{Dtype, RecomputeChoice};
use crate::measuring::{leave, run_workers};
use crate::plan::device_in;
use crate::replay::StrategyChoice;

pub use measurement::Measurement;
pub use shapes::Shape;

/// Steps before those that count.
const WARM_UP: usize = 2;

/// Time whole training steps (random weights, random tokens).
#[derive(Debug, Clone, Args)]
// Workers get the arguments of the process that starts them and, at the end, the mesh that is measured.
#[command(rename_all = "snake_case", args_override_self = true)]
pub struct BenchStepArgs {
    /// Ranks in a row. Without it, the three meshes 2x1, 1x2 and 2x2 are measured in turn.
    #[arg(long, visible_alias = "tp")]
    pub tp_size: Option<usize>,

    /// Rows of the mesh.
    #[arg(long, visible_alias = "dp", default_value_t = 1)]
    pub dp_size: usize,

    /// Ranks over which the experts of a mixture are spread, as in training.
    #[arg(long, default_value_t = 1, value_name = "E")]
    pub expert_parallel_size: usize,

    /// Whose sizes.
    #[arg(long, value_enum, default_value_t = Shape::Qwen2)]
    pub model: Shape,

    /// Layers; 0 is the whole model.
    #[arg(long, visible_alias = "num_layers", default_value_t = 2)]
    pub layers: usize,

    /// Tokens per row.
    #[arg(long, visible_alias = "seq_length", default_value_t = 512)]
    pub seq: usize,

    /// Rows per worker.
    #[arg(long, visible_alias = "batch_size", default_value_t = 1)]
    pub batch: usize,

    /// The strategy.
    #[arg(long, value_enum, default_value_t = StrategyChoice::Fsdp)]
    pub strategy: StrategyChoice,

    /// DeepSpeed: 0, 1 or 2.
    #[arg(long, default_value_t = 1)]
    pub zero_stage: u8,

    /// Kind of parameters and activations.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub dtype: Dtype,

    /// Steps that count, after two that warm up.
    #[arg(long, default_value_t = 7)]
    pub steps: usize,

    /// Cut the residual stream over the row by token.
    #[arg(long)]
    pub sequence_parallel: bool,

    /// What backward computes again.
    #[arg(long, value_enum, default_value_t = RecomputeChoice::Light)]
    pub recompute: RecomputeChoice,

    /// Rows of the head whose logits exist at the same time.
    #[arg(long, default_value_t = HEAD_CHUNK_ROWS)]
    pub head_chunk_rows: usize,

    /// Rank of adapters of all matrices, which are trained in the place of the model; 0 trains the model.
    #[arg(long, default_value_t = 0)]
    pub lora_r: usize,

    /// Where to compute.
    #[arg(long, default_value = "auto", value_parser = |text: &str| text.parse::<DeviceChoice>())]
    pub device: DeviceChoice,

    /// A device file, as `tandem plan --measure` writes it: then the time of a step is predicted too.
    #[arg(long, value_name = "FILE")]
    pub device_file: Option<PathBuf>,

    /// Also run two steps in which each operator is counted, and timed alone, and show the most expensive.
    #[arg(long)]
    pub operators: bool,

    /// Compute on the CPU as if it were a GPU: with the operators that one would run. One rank; times say nothing then.
    #[arg(long)]
    pub pretend_gpu: bool,

    /// Print one JSON object per mesh instead of a table.
    #[arg(long)]
    pub json: bool,
}

impl BenchStepArgs {
    /// How `tp` x `dp` ranks train.
    fn engine_spec(&self, tp: usize, dp: usize) -> Outcome<EngineSpec> {
        let mesh = DeviceMesh::new(tp, dp).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(EngineSpec {
            mesh,
            expert_parallel_size: self.expert_parallel_size,
            strategy: self.strategy.spec(self.zero_stage, true),
            device: match self.pretend_gpu {
                true => DeviceChoice::Cuda,
                false => self.device,
            },
            dtype: self.dtype.into(),
            sequence_parallel: self.sequence_parallel,
            activation_checkpointing: false,
            recompute: Some(self.recompute.into()),
            comm_timeout_s: 120,
            head_chunk_rows: self.head_chunk_rows,
        })
    }
}

/// Starts workers for each mesh and prints what they measured.
pub fn run(args: &BenchStepArgs, line: &[OsString]) -> Outcome<i32> {
    let meshes = match args.tp_size {
        Some(tp_size) => vec![(tp_size, args.dp_size)],
        None => vec![(2, 1), (1, 2), (2, 2)],
    };
    if args.pretend_gpu && (meshes != [(1, 1)] || args.device == DeviceChoice::Cuda) {
        return Err(Failure::usage(
            "--pretend_gpu is for one rank on the CPU: give --tp_size 1 --dp_size 1 with it, and no --device cuda",
        ));
    }
    let config = args.model.config(args.layers)?;
    let tree = ModuleTree::new(&config);
    for (tp, dp) in &meshes {
        let spec = args.engine_spec(*tp, *dp)?;
        spec.check_expert_groups()?;
        spec.strategy_for(&config, &tree)?;
    }
    for (tp, dp) in meshes {
        let scratch = tempfile::tempdir().map_err(Failure::other)?;
        let mesh = [format!("--tp_size={tp}"), format!("--dp_size={dp}")];
        let mut line = line.to_vec();
        line.extend(mesh.map(OsString::from));
        let place = scratch.path();
        let text = match run_workers(tp * dp, args.device, Transport::Auto, &line, place)? {
            Ok(text) => text,
            Err(code) => return Ok(code),
        };
        if args.json {
            say!("{text}")?;
        } else {
            print(args, &serde_json::from_str(&text).map_err(Failure::other)?)?;
        }
    }
    Ok(0)
}

fn print(args: &BenchStepArgs, m: &Measurement) -> Outcome<()> {
    say!(
        "{:?}, {} layers, seq {}, batch {}, {:?}, tp {} x dp {}, ep {}, {:?}",
        args.model,
        args.layers,
        args.seq,
        args.batch,
        args.dtype,
        m.tp,
        m.dp,
        m.ep,
        args.strategy
    )?;
    for line in m.lines() {
        say!("  {line}")?;
    }
    Ok(())
}

/// What one worker does.
pub fn run_worker(args: &BenchStepArgs, env: &WorkerEnv, environment: &Environment) -> Outcome<()> {
    let _pretended = args.pretend_gpu.then(pretend::cuda);
    let spec = args.engine_spec(args.tp_size.unwrap_or(1), args.dp_size)?;
    let config = args.model.config(args.layers)?;
    let tree = ModuleTree::new(&config);
    let ranks = Ranks::join(env, &spec, &Network::default())?;
    let strategy = spec.strategy_for(&config, &tree)?;
    let lora = LoraConfig {
        r: args.lora_r,
        alpha: 2.0 * args.lora_r as f64,
        dropout: 0.0,
        use_rslora: false,
        targets: LoraTargets::AllLinear,
    };
    let lora = (args.lora_r > 0).then_some((lora, 0));
    let adapters = lora
        .as_ref()
        .map(|(lora, _)| ModuleTree::adapters(&config, lora))
        .transpose()
        .map_err(|error| Failure::usage(error.to_string()))?;
    let adapters_of = lora.as_ref().map(|(lora, _)| lora).zip(adapters.as_ref());
    let planned = planned(args, &spec, &config, &strategy, adapters_of)?;
    let mut engine = engine(
        &spec,
        &config,
        strategy,
        args.seq,
        &ranks,
        lora.as_ref(),
        Purpose::Training,
    )?;
    let weights = RandomInit {
        seed: 0,
        initializer_range: engine.config.initializer_range,
    };
    engine.load(&weights).map_err(Failure::train)?;
    engine.load_adapters(&weights).map_err(Failure::train)?;

    let mut times = Vec::new();
    let mut losses = Vec::new();
    let mut processor = Vec::new();
    let page_faults = || memory::page_faults().unwrap_or(0) as f64;
    let mut faults_before = page_faults();
    for step in 1..=args.steps + WARM_UP {
        if step == WARM_UP + 1 {
            faults_before = page_faults();
        }
        let batch = random_batch(args, &engine);
        ranks.barrier()?;
        let (start, worked) = (Instant::now(), memory::processor_seconds());
        let report = train_step(&mut engine, &[batch], 1e-5, &UpdateRule::USUAL, step as u64)
            .map_err(Failure::train)?;
        ranks.barrier()?;
        if step > WARM_UP {
            times.push(start.elapsed().as_secs_f64());
            processor.push(memory::processor_seconds() - worked);
            losses.push(report.loss);
        }
    }
    let faults = (page_faults() - faults_before) / args.steps as f64;
    let faults = gather(&ranks, &[faults])?.concat();
    let processor = gather(&ranks, &processor)?;
    let of_all = |step: usize| processor.iter().map(|of_rank| of_rank[step]).sum::<f64>();
    let cpu_s_per_step = median((0..args.steps).map(of_all).collect());
    let operators = match args.operators {
        true => Some(operators::of_a_step(|detail| {
            let batch = random_batch(args, &engine);
            let step = (args.steps + WARM_UP + 1) as u64 + u64::from(detail == Detail::Times);
            let (result, mut calls) = recorder::record(detail, || {
                train_step(&mut engine, &[batch], 1e-5, &UpdateRule::USUAL, step)
            });
            result.map_err(Failure::train)?;
            calls.retain(|call| call.device == ranks.device);
            Ok(calls)
        })?),
        false => None,
    };
    let device_memory_mb = match ranks.device {
        Device::Cpu => Vec::new(),
        Device::Cuda(index) => match cuda::memory(index) {
            None => Vec::new(),
            Some((free, total)) => gather(&ranks, &[(total - free) as f64 / 1e6])?.concat(),
        },
    };
    let flops = flops::per_step(
        &engine.config,
        &tree,
        adapters.as_ref(),
        (args.batch * args.seq * args.dp_size) as u64,
        args.seq as u64,
    );
    let peak = memory::peak_resident_bytes().unwrap_or(0) as f64 / 1e6;
    let peaks = gather(&ranks, &[peak])?.concat();
    let shapes = gemm_floor::shapes(&engine.dimensions(), args.batch * args.seq);
    let bytes = memory_floor::bytes(&engine) as f64;
    let kind = engine.strategy.precision.matmul;
    drop(engine);
    ranks.barrier()?;
    let gemms = gemm_floor::measure(&shapes, kind, ranks.device, 5);
    let products = gemms.iter().map(LinearTime::total);
    let products = products.fold(Seconds::default(), Seconds::add);
    let a_byte = memory_floor::seconds_per_byte(ranks.device, 5, || ranks.barrier())?;
    let moves = a_byte * bytes;
    let worked = products.processor + moves.processor;
    let floors = gather(&ranks, &[products.wall, moves.wall, worked])?;
    let slowest = |index: usize| floors.iter().map(|of| of[index]).fold(0.0, f64::max);
    let (gemm_floor_s, memory_floor_s) = (slowest(0), slowest(1));
    let processor_floor_s: f64 = floors.iter().map(|of| of[2]).sum();
    let processor_floor_s = (ranks.device == Device::Cpu).then_some(processor_floor_s);
    if env.rank == 0 {
        let kind = plan::Device::of_driver(&device::name(ranks.device).unwrap_or_default());
        let mut measurement = Measurement {
            cpu_s_per_step,
            processor_floor_s,
            processor_floor_ratio: processor_floor_s.map(|floor| cpu_s_per_step / floor),
            page_faults_per_step: faults.iter().sum(),
            peak_memory_mb: peaks,
            planned_memory_mb: planned.0.total() as f64 / 1e6,
            planned_memory: planned.0,
            planned_step_s: planned.1,
            device_memory_mb,
            flops,
            mfu: None,
            operators,
            ..measurement(
                args,
                spec.mesh,
                times,
                &losses,
                &gemms,
                [gemm_floor_s, memory_floor_s],
            )
        };
        measurement.mfu = kind.map(|kind| {
            let peak = kind.peak(Kind::BFloat16) * spec.mesh.world_size() as f64;
            measurement.flops / measurement.step_time_s / peak
        });
        let text = serde_json::to_string(&measurement).map_err(Failure::other)?;
        leave(environment, &text)?;
    }
    ranks.barrier()
}

/// What `tandem plan` says of memory and time.
fn planned(
    args: &BenchStepArgs,
    spec: &EngineSpec,
    config: &ModelConfig,
    strategy: &Strategy,
    adapters: Option<(&LoraConfig, &ModuleTree)>,
) -> Outcome<(Memory, Option<f64>)> {
    let (tp, sp) = (spec.mesh.tp_size(), spec.sequence_parallel);
    let share = Share::new(config, &strategy.plan, tp, sp, adapters)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let settings = Settings {
        mesh: spec.mesh,
        level: strategy.level,
        precision: strategy.precision,
        reshard_after_forward: strategy.reshard_after_forward,
        sequence_parallel: sp,
        recompute: spec.recompute(),
        seq_length: args.seq,
        batch_size: args.batch,
        micro_batches: 1,
        head_chunk_rows: args.head_chunk_rows,
    };
    let memory = Memory::of(&share, &settings, place(spec.device));
    let Some(path) = &args.device_file else {
        return Ok((memory, None));
    };
    let device = device_in(path)?;
    let kernels = Kernels::of(&device);
    let time = StepTime::of(&share, &settings, &device, kernels);
    Ok((memory, Some(time.total_s())))
}

fn measurement(
    args: &BenchStepArgs,
    mesh: DeviceMesh,
    times: Vec<f64>,
    losses: &[f64],
    gemms: &[LinearTime],
    [gemm_floor_s, memory_floor_s]: [f64; 2],
) -> Measurement {
    let fold = |of: fn(f64, f64) -> f64| times.iter().copied().reduce(of).unwrap_or(f64::NAN);
    let (shortest, longest) = (fold(f64::min), fold(f64::max));
    let median = median(times);
    let floor_s = gemm_floor_s + memory_floor_s;
    Measurement {
        tp: mesh.tp_size(),
        dp: mesh.dp_size(),
        ep: args.expert_parallel_size,
        step_time_s: median,
        step_time_min_s: shortest,
        step_time_max_s: longest,
        tokens_per_s: (args.batch * args.seq * mesh.dp_size()) as f64 / median,
        cpu_s_per_step: 0.0,
        page_faults_per_step: 0.0,
        peak_memory_mb: Vec::new(),
        planned_memory_mb: 0.0,
        planned_memory: Memory::default(),
        planned_step_s: None,
        device_memory_mb: Vec::new(),
        flops: 0.0,
        mfu: None,
        operators: None,
        gemm_floor_s,
        memory_floor_s,
        floor_s,
        floor_ratio: median / floor_s,
        processor_floor_s: None,
        processor_floor_ratio: None,
        loss_first: losses[0],
        loss_last: losses[losses.len() - 1],
        model: format!("{:?}", args.model).to_lowercase(),
        lora_r: args.lora_r,
        gemms: gemms
            .iter()
            .map(|t| {
                let s = &t.shape;
                (
                    s.name.to_owned(),
                    s.count,
                    s.tokens,
                    s.inputs,
                    s.outputs,
                    t.rate() / 1e9,
                )
            })
            .collect(),
    }
}

/// The same tokens every step, different for each dp_rank: the loss must fall.
fn random_batch(args: &BenchStepArgs, engine: &Engine) -> MicroBatch {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ (engine.coords.dp_rank as u64 + 1);
    let vocab = engine.config.vocab_size as u64;
    let ids: Vec<i64> = (0..args.batch * args.seq)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % vocab) as i64
        })
        .collect();
    MicroBatch::new(&ids, &ids, args.seq, state, engine.device)
}

/// Of two in the middle, the larger.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The numbers of every rank.
fn gather(ranks: &Ranks, own: &[f64]) -> Outcome<Vec<Vec<f64>>> {
    all_gather_numbers(ranks.everyone.as_ref(), own, ranks.device).map_err(Failure::comm)
}
