//! `tandem replay`: trains on recorded batches, so that any model can be held against PyTorch on any mesh.

mod case;
mod check;
mod comparison;
mod documents;
mod integers;
mod tensors;
mod verdict;

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use tandem_checkpoint::{FloatKind, SafetensorsWriter};
use tandem_launch::env::WorkerEnv;
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::OptimizerState;
use tandem_run::engine::{Purpose, engine};
use tandem_run::failure::{Failure, Outcome};
use tandem_run::ranks::Ranks;
use tandem_run::spec::{self, EngineSpec, Network};
use tandem_run::storage::write_whole;
use tandem_run::weights::Pretrained;
use tandem_tensor::{Device, DeviceChoice};
use tandem_trainer::{Engine, MicroBatch, first_row_logits, gather_tensor, train_step};

use crate::flags::choices::{Dtype, TransportChoice};
use case::{Candidate, Case};
pub use check::check;
use integers::Integers;

/// What a replay leaves in `--output`: losses, logits and first gradients, weights after the last step.
const TRAJECTORY: &str = "trajectory.json";
const STEP0: &str = "step0.safetensors";
const FINAL: &str = "final.safetensors";

/// The logits, in the file of the first step.
const LOGITS: &str = "logits";

/// What names of gradients begin with there.
const GRADIENT: &str = "grad.";

/// Train on the recorded batches of a case and compare with what PyTorch computed.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct ReplayArgs {
    /// Folder of the case: config.json, model.safetensors, batches.safetensors, trajectory.json (docs/parity.md).
    #[arg(long, value_name = "DIR")]
    pub case: PathBuf,

    /// The strategy.
    #[arg(long, value_enum)]
    pub strategy: StrategyChoice,

    /// Ranks in a row of the mesh.
    #[arg(long)]
    pub tp_size: usize,

    /// Rows of the mesh.
    #[arg(long, default_value_t = 1)]
    pub dp_size: usize,

    /// Ranks over which the experts of a mixture are spread, whole; with 1, each is cut over the row.
    #[arg(long, default_value_t = 1)]
    pub expert_parallel_size: usize,

    /// DeepSpeed: 0, 1 or 2.
    #[arg(long)]
    pub zero_stage: Option<u8>,

    /// Micro-batches per step.
    #[arg(long, default_value_t = 1)]
    pub gradient_accumulation_steps: usize,

    /// Cut the residual stream over the row by token.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub sequence_parallel: bool,

    /// Keep only each layer's input.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub activation_checkpointing: bool,

    /// FSDP: free gathered parameters after forward.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub reshard_after_forward: bool,

    /// Kind of parameters and activations.
    #[arg(long, value_enum, default_value_t = Dtype::Fp32)]
    pub dtype: Dtype,

    /// Where to compute.
    #[arg(long, default_value = "auto", value_parser = |text: &str| text.parse::<DeviceChoice>())]
    pub device: DeviceChoice,

    /// How ranks move data; with staged they may share a GPU.
    #[arg(long, value_enum, default_value_t = TransportChoice::Auto)]
    pub transport: TransportChoice,

    /// Seconds that a rank waits for the others.
    #[arg(long, default_value_t = 60)]
    pub comm_timeout_s: u64,

    /// Folder for trajectory.json, final.safetensors and step0.safetensors.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,

    /// Compare with the case's expectation; exit with 1 where a tolerance is missed.
    #[arg(long)]
    pub check: bool,
}

/// The two strategies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StrategyChoice {
    /// AutoTP and ZeRO.
    Deepspeed,
    /// Declared plan and sharded parameters.
    Fsdp,
}

/// The recorded batches.
struct Batches {
    ids: Integers,
    labels: Integers,
    mask: Integers,
    /// Where the documents of each row begin.
    starts: Vec<Vec<u32>>,
}

impl ReplayArgs {
    /// Refuses what cannot be, before workers are started.
    pub fn check_flags(&self) -> Outcome<(EngineSpec, Case)> {
        let mesh = DeviceMesh::new(self.tp_size, self.dp_size)
            .map_err(|error| Failure::usage(error.to_string()))?;
        if self.strategy == StrategyChoice::Fsdp && self.zero_stage.is_some() {
            return Err(Failure::usage(
                "--zero_stage belongs to --strategy deepspeed; leave it out",
            ));
        }
        let spec = self.engine_spec(mesh);
        spec.strategy.check(spec.dtype)?;
        spec.check_expert_groups()?;
        let case = Case::open(&self.case)?;
        let parts = self.dp_size * self.gradient_accumulation_steps;
        let rows = case.trajectory.global_batch;
        if parts == 0 || !rows.is_multiple_of(parts) {
            return Err(Failure::usage(format!(
                "the case's global batch of {rows} rows cannot be cut into dp_size x gradient_accumulation_steps = {parts} equal parts"
            )));
        }
        Ok((spec, case))
    }

    fn engine_spec(&self, mesh: DeviceMesh) -> EngineSpec {
        EngineSpec {
            mesh,
            expert_parallel_size: self.expert_parallel_size,
            strategy: self
                .strategy
                .spec(self.zero_stage.unwrap_or(1), self.reshard_after_forward),
            device: self.device,
            dtype: self.dtype.into(),
            sequence_parallel: self.sequence_parallel,
            activation_checkpointing: self.activation_checkpointing,
            recompute: None,
            comm_timeout_s: self.comm_timeout_s,
            // Less than the rows of a case, so that there is more than one chunk.
            head_chunk_rows: 64,
        }
    }
}

impl StrategyChoice {
    /// The strategy without corrections, and with gradients in fp32 on the wire.
    pub fn spec(self, zero_stage: u8, reshard_after_forward: bool) -> spec::Strategy {
        match self {
            Self::Deepspeed => spec::Strategy::DeepSpeed(spec::DeepSpeed {
                zero_stage,
                autotp_override: Vec::new(),
            }),
            Self::Fsdp => spec::Strategy::Fsdp(spec::Fsdp {
                autocast: false,
                reshard_after_forward,
                reduce_dtype: spec::Dtype::Fp32,
            }),
        }
    }
}

/// What one worker does. Rank 0 writes the results; the verdict is [`check`]'s.
pub fn run_worker(args: &ReplayArgs, env: &WorkerEnv) -> Outcome<()> {
    let (spec, case) = args.check_flags()?;
    let config = ModelConfig::from_dir(&case.dir).map_err(Failure::other)?;
    let source = Pretrained::open(&case.dir, config)?;
    let config = source.config.clone();
    let tree = ModuleTree::new(&config);
    let batches = read_batches(&case)?;
    let network = Network {
        transport: args.transport.into(),
        ..Network::default()
    };
    let ranks = Ranks::join(env, &spec, &network)?;
    let strategy = spec.strategy_for(&config, &tree)?;
    let adapter = case.adapter()?;
    let lora = adapter.as_ref().map(|adapter| (adapter.lora.clone(), 0));
    let seq = case.trajectory.seq;
    let mut engine = engine(
        &spec,
        &config,
        strategy,
        seq,
        &ranks,
        lora.as_ref(),
        Purpose::Training,
    )?;
    engine.load(&source).map_err(Failure::train)?;
    let tree = engine.trained_tree();
    if let Some(adapter) = &adapter {
        adapter.check(&tree)?;
        engine.load_adapters(adapter).map_err(Failure::train)?;
    }

    let is_writer = env.rank == 0;
    if is_writer {
        std::fs::create_dir_all(&args.output).map_err(|error| {
            Failure::other(format!("cannot create {}: {error}", args.output.display()))
        })?;
    }
    let first_row = row(&batches.ids, 0, 0);
    let logits =
        first_row_logits(&mut engine, first_row, &batches.starts[0]).map_err(Failure::train)?;
    let shape = vec![seq, engine.config.vocab_size];
    let logits = (LOGITS.to_owned(), shape, logits);

    let mut candidate = Candidate::default();
    for step in 0..case.trajectory.n_steps {
        ranks.world.set_step(step as u64 + 1);
        let micro_batches = micro_batches(args, &engine, &case, &batches, step);
        let number = step as u64 + 1;
        let report = train_step(
            &mut engine,
            &micro_batches,
            case.trajectory.lr,
            &case.rule(),
            number,
        )
        .map_err(Failure::train)?;
        candidate.loss.push(report.loss);
        candidate.grad_norm.push(report.grad_norm);
        candidate.n_tokens.push(report.n_tokens);
        if step == 0 {
            let path = is_writer.then(|| args.output.join(STEP0));
            // A device's update leaves it clipped.
            let clip = match engine.device {
                Device::Cpu => 1.0,
                Device::Cuda(_) => case.rule().clip_factor(report.grad_norm),
            };
            let gradient = (OptimizerState::Gradient, GRADIENT, clip);
            write_tensors(path, &engine, &tree, gradient, Some(&logits))?;
        }
    }
    let path = is_writer.then(|| args.output.join(FINAL));
    write_tensors(path, &engine, &tree, (OptimizerState::Param, "", 1.0), None)?;
    if is_writer {
        let text = serde_json::to_string_pretty(&candidate).map_err(Failure::other)?;
        write_whole(&args.output.join(TRAJECTORY), &text)?;
    }
    ranks.barrier()
}

fn read_batches(case: &Case) -> Outcome<Batches> {
    let path = case.dir.join("batches.safetensors");
    let [ids, labels, mask] =
        integers::read_integers(&path, ["input_ids", "labels", "attention_mask"])?;
    let t = &case.trajectory;
    let wanted = [t.n_steps, t.global_batch, t.seq];
    for (name, tensor) in [
        ("input_ids", &ids),
        ("labels", &labels),
        ("attention_mask", &mask),
    ] {
        if tensor.shape != wanted {
            return Err(Failure::other(format!(
                "{}: {name} has shape {:?}, but trajectory.json says {wanted:?}",
                path.display(),
                tensor.shape
            )));
        }
    }
    // Right padding needs no mask under causal attention; anything else would silently train on other positions.
    if let Some(index) = mask
        .values
        .chunks(t.seq)
        .position(|row| row.windows(2).any(|w| w[0] < w[1]))
    {
        return Err(Failure::other(format!(
            "{}: attention_mask of row {index} is not right padding (ones, then zeros), which is all that is supported",
            path.display()
        )));
    }
    let starts = documents::starts(&path, wanted)?;
    Ok(Batches {
        ids,
        labels,
        mask,
        starts,
    })
}

/// One row of a `[steps, rows, seq]` tensor.
fn row(tensor: &Integers, step: usize, row: usize) -> &[i64] {
    let (rows, seq) = (tensor.shape[1], tensor.shape[2]);
    let start = (step * rows + row) * seq;
    &tensor.values[start..start + seq]
}

/// This dp_rank's part of a step's rows.
fn micro_batches(
    args: &ReplayArgs,
    engine: &Engine,
    case: &Case,
    batches: &Batches,
    step: usize,
) -> Vec<MicroBatch> {
    let parts = args.dp_size * args.gradient_accumulation_steps;
    let (rows, seq) = (case.trajectory.global_batch / parts, case.trajectory.seq);
    (0..args.gradient_accumulation_steps)
        .map(|micro| {
            let part = engine.coords.dp_rank * args.gradient_accumulation_steps + micro;
            let first = step * case.trajectory.global_batch + part * rows;
            let range = first * seq..(first + rows) * seq;
            let starts = batches.starts[first..first + rows].to_vec();
            let (ids, labels) = (
                &batches.ids.values[range.clone()],
                &batches.labels.values[range],
            );
            let mask = &batches.mask.values[first * seq..(first + rows) * seq];
            let mask: Vec<u8> = mask.iter().map(|&bit| u8::from(bit != 0)).collect();
            MicroBatch::new(ids, labels, seq, part as u64, engine.device)
                .with_documents(starts, seq)
                .with_mask(&mask)
        })
        .collect()
}

/// Puts together every tensor of the model, one at a time, and writes them, divided by `scale`, behind `first`, to `path`, which one rank
/// has.
fn write_tensors(
    path: Option<PathBuf>,
    engine: &Engine,
    tree: &ModuleTree,
    (state, prefix, scale): (OptimizerState, &str, f64),
    first: Option<&(String, Vec<usize>, Vec<f32>)>,
) -> Outcome<()> {
    let names: Vec<String> = tree
        .parameters()
        .map(|spec| format!("{prefix}{}", spec.name))
        .collect();
    let shapes = tree.parameters().map(|spec| &spec.shape[..]);
    let announced = names.iter().map(String::as_str).zip(shapes);
    let announced = first
        .map(|(name, shape, _)| (name.as_str(), &shape[..]))
        .into_iter()
        .chain(announced);
    let mut file = path
        .map(|path| SafetensorsWriter::create(&path, announced, FloatKind::F32))
        .transpose()
        .map_err(Failure::other)?;
    let mut write = |name: &str, values: &[f32]| match &mut file {
        Some(file) => file.write(name, values).map_err(Failure::other),
        None => Ok(()),
    };
    if let Some((name, _, values)) = first {
        write(name, values)?;
    }
    for (spec, name) in tree.parameters().zip(&names) {
        let mut values = gather_tensor(engine, spec, state).map_err(Failure::train)?;
        if scale != 1.0 {
            let whole = |value: &mut f32| *value = (f64::from(*value) / scale) as f32;
            values.iter_mut().for_each(whole);
        }
        write(name, &values)?;
    }
    match file {
        Some(file) => file.finish().map_err(Failure::other),
        None => Ok(()),
    }
}
