//! `tandem plan`: every way to train a model on so many devices, what it costs, and the command line of the best.

mod found;
mod measure;
mod operators;
mod scale;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use tandem_files::read_small_text;
use tandem_launch::env::WorkerEnv;
use tandem_launch::{exit_code, say};
use tandem_model::lora::{LoraConfig, LoraTargets};
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{Plan, Precision, ShardingLevel};
use tandem_plan::{CutChoice, Device, Kernels, Question, search};
use tandem_run::environment::Environment;
use tandem_run::facts::model_config;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::spec::HEAD_CHUNK_ROWS;
use tandem_tensor::memory;

use crate::flags::choices::{Dtype, RecomputeChoice};
use crate::replay::StrategyChoice;
use found::Found;
use scale::ScaleTransport;

/// A device file has a few hundred bytes.
const LONGEST_DEVICE_FILE: u64 = 64 << 10;

/// Tokens of a step where nobody says how many: what large models are trained with at first.
const TOKENS_PER_STEP: usize = 1 << 19;

/// Tokens of a row where nobody says how many and the model is made for as many.
const SEQ_LENGTH: usize = 4096;

/// What no batch has, so that products of sizes stay small.
const MOST_TOKENS: usize = 1 << 40;

/// More devices than any cluster has.
const MOST_DEVICES: usize = 1 << 20;

/// Show which meshes and strategies fit a model, how fast each would be, and why. Needs the model's config.json alone.
#[derive(Debug, Clone, Args)]
// Workers that measure get the arguments of the process that starts them.
#[command(rename_all = "snake_case", args_override_self = true)]
pub struct PlanArgs {
    /// A Hugging Face model: hub name, or folder with config.json.
    #[arg(long, default_value = "Qwen/Qwen2-7B")]
    pub model_name: String,

    /// Keep only the first N layers; 0 keeps all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub num_layers: usize,

    /// Devices in all.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub devices: usize,

    /// What they are: b200, h200, h100, h100-pcie, h100-nvl, a100-80, a100-80-pcie, a100-40, a100-40-pcie, l40s, l4, a10, rtx5090,
    /// rtx4090, t4; cpu is this machine's processor, by a guess.
    #[arg(long, default_value = "h100", value_name = "TYPE")]
    pub device_type: String,

    /// What they are, by a file that --measure writes.
    #[arg(long, value_name = "FILE", conflicts_with = "device_type")]
    pub device_file: Option<PathBuf>,

    /// Devices in a node [default: 8, or what the file says].
    #[arg(long, value_name = "N")]
    pub devices_per_node: Option<usize>,

    /// Gbit/s of a node to the others, all adapters together [default: those of the machines that such devices come in].
    #[arg(long, value_name = "GBIT")]
    pub network_gbit: Option<f64>,

    /// Tokens of a row [default: 4096, or what the model is made for].
    #[arg(long, value_name = "N")]
    pub seq_length: Option<usize>,

    /// Tokens of a step, all devices together [default: 524288, or a row for each device].
    #[arg(long, value_name = "N")]
    pub global_batch_tokens: Option<usize>,

    /// Only this strategy.
    #[arg(long, value_enum)]
    pub strategy: Option<StrategyChoice>,

    /// Only this stage of ZeRO: 0, 1 or 2, with --strategy deepspeed.
    #[arg(long, value_name = "STAGE")]
    pub zero_stage: Option<u8>,

    /// Only rows of so many ranks.
    #[arg(long, value_name = "N")]
    pub tp_size: Option<usize>,

    /// Only with the experts of a mixture spread over so many ranks; 1 is every expert cut over the row.
    #[arg(long, value_name = "E")]
    pub expert_parallel_size: Option<usize>,

    /// Only with, or without, sequence parallelism.
    #[arg(long)]
    pub sequence_parallel: Option<bool>,

    /// Only with this recomputed in backward.
    #[arg(long, value_enum, value_name = "WHAT")]
    pub recompute: Option<RecomputeChoice>,

    /// Only with micro-batches of so many rows.
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,

    /// Kind of parameters and activations.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub dtype: Dtype,

    /// Train adapters of this rank in the place of the model; 0 trains the model.
    #[arg(long, default_value_t = 0, value_name = "R")]
    pub lora_r: usize,

    /// The matrices with adapters, as in training.
    #[arg(long, default_value = "all-linear", value_name = "NAMES")]
    pub lora_target_modules: String,

    /// How many of the candidates are shown.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub top: usize,

    /// Print one JSON object with all candidates.
    #[arg(long)]
    pub json: bool,

    /// Measure this machine's devices, --devices of them at a time, and print their device file.
    #[arg(long)]
    pub measure: bool,

    /// Also count what one layer of the best launches and moves on a GPU, by computing it here, beside a compiled PyTorch layer.
    #[arg(long, conflicts_with = "measure")]
    pub operators: bool,

    /// Also show what the best takes with 64, 256 and 1,024 ranks, phase by phase, and which limit is met first.
    #[arg(
        long,
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "auto",
        value_name = "TRANSPORT",
        conflicts_with = "measure"
    )]
    pub scale: Option<ScaleTransport>,
}

/// Prints the plan, or measures. Returns the exit code.
pub fn run(args: &PlanArgs, line: &[OsString]) -> Outcome<i32> {
    if args.measure {
        return measure::run(args, line);
    }
    args.check()?;
    let config = model_config(&args.model_name, args.num_layers)?;
    let device = args.device()?;
    if args.operators && device.cpu {
        return Err(Failure::usage(
            "--operators counts what a GPU runs: give a --device_type, or a --device_file, that is one",
        ));
    }
    let seq_length = args.seq_length(&config)?;
    let rows = args.rows(seq_length)?;
    let tree = ModuleTree::new(&config);
    let lora = args.lora()?;
    let adapters = lora
        .as_ref()
        .map(|lora| ModuleTree::adapters(&config, lora))
        .transpose()
        .map_err(|error| Failure::usage(error.to_string()))?;
    let plan = Plan::declared(&tree);
    let question = Question {
        config: &config,
        plan: &plan,
        adapters: lora.as_ref().zip(adapters.as_ref()),
        devices: args.devices,
        device: &device,
        kernels: Kernels::of(&device),
        precision: match args.dtype {
            Dtype::Fp32 => Precision::fp32(),
            Dtype::Bf16 => Precision::bf16(),
        },
        seq_length,
        rows,
        head_chunk_rows: HEAD_CHUNK_ROWS,
        cuts: &args.cuts(),
        tp_size: args.tp_size,
        expert_parallel: args.expert_parallel_size,
        sequence_parallel: args.sequence_parallel,
        recompute: args.recompute.map(Into::into),
        batch_size: args.batch_size,
    };
    let candidates = search(&question).map_err(|error| Failure::usage(error.to_string()))?;
    let operators = match candidates.first() {
        Some(best) if args.operators => Some(operators::run(args, line, &config, best)?),
        _ => None,
    };
    let scale = match (candidates.first(), args.scale) {
        (Some(best), Some(transport)) => {
            let model = (&config, &plan);
            let adapters = question.adapters;
            Some(scale::of(transport, model, adapters, &device, best)?)
        }
        _ => None,
    };
    let found = Found {
        args,
        config: &config,
        parameters: tree.numel(),
        device: &device,
        seq_length,
        rows,
        candidates: &candidates,
        operators: operators.as_ref(),
        scale: scale.as_ref(),
    };
    match args.json {
        true => say!("{}", found.json())?,
        false => {
            for line in found.lines() {
                say!("{line}")?;
            }
        }
    }
    Ok(match candidates.first().is_some_and(|best| best.fits) {
        true => exit_code::OK,
        false => exit_code::FAILURE,
    })
}

/// What a worker does that measures, or records.
pub fn run_worker(args: &PlanArgs, env: &WorkerEnv, environment: &Environment) -> Outcome<()> {
    match (args.measure, args.operators) {
        (true, _) => measure::run_worker(args, env, environment),
        (false, true) => operators::run_worker(args, env, environment),
        (false, false) => Err(Failure::usage(
            "plan is a single process, unless it measures or records; start it without RANK and WORLD_SIZE",
        )),
    }
}

/// The device that the file of `--device_file` describes.
pub fn device_in(path: &Path) -> Outcome<Device> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("--device_file {}: {error}", path.display()))
    };
    let text = read_small_text(path, LONGEST_DEVICE_FILE).map_err(|error| wrong(&error))?;
    Device::from_json(&text).map_err(|error| wrong(&error))
}

impl PlanArgs {
    fn check(&self) -> Outcome<()> {
        let at_least_one = [
            ("devices", Some(self.devices)),
            ("devices_per_node", self.devices_per_node),
            ("seq_length", self.seq_length),
            ("global_batch_tokens", self.global_batch_tokens),
            ("tp_size", self.tp_size),
            ("batch_size", self.batch_size),
            ("top", Some(self.top)),
        ];
        for (flag, value) in at_least_one {
            if value == Some(0) {
                return Err(Failure::usage(format!(
                    "--{flag} is 0; it must be at least 1"
                )));
            }
        }
        if self.devices > MOST_DEVICES {
            return Err(Failure::usage(format!(
                "--devices {}: no cluster has more than {MOST_DEVICES}",
                self.devices
            )));
        }
        if let Some(gbit) = self.network_gbit
            && !(gbit.is_finite() && gbit > 0.0)
        {
            return Err(Failure::usage(format!(
                "--network_gbit is {gbit}; it must be above 0"
            )));
        }
        match (self.strategy, self.zero_stage) {
            (_, None) => Ok(()),
            (Some(StrategyChoice::Deepspeed), Some(0..=2)) => Ok(()),
            (_, Some(stage)) => Err(Failure::usage(format!(
                "--zero_stage {stage} is for --strategy deepspeed, and 0, 1 or 2"
            ))),
        }
    }

    /// The devices, with what is said about their nodes.
    fn device(&self) -> Outcome<Device> {
        let mut device = match &self.device_file {
            Some(path) => device_in(path)?,
            None if self.device_type.eq_ignore_ascii_case("cpu") => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let share = self.devices_per_node.unwrap_or(self.devices) as f64;
                let memory = memory::available_bytes().unwrap_or(u64::MAX) as f64;
                Device::processor(cores as f64 / share, memory / share, self.devices)
            }
            None => Device::named(&self.device_type)
                .map_err(|error| Failure::usage(format!("--device_type: {error}")))?,
        };
        if let Some(count) = self.devices_per_node {
            device.devices_per_node = count;
        }
        if let Some(gbit) = self.network_gbit {
            device.network.bandwidth = gbit * 1e9 / 8.0;
        }
        Ok(device)
    }

    fn seq_length(&self, config: &ModelConfig) -> Outcome<usize> {
        let most = config.max_position_embeddings;
        let seq_length = self.seq_length.unwrap_or(most.min(SEQ_LENGTH));
        if seq_length > most {
            return Err(Failure::usage(format!(
                "--seq_length {seq_length} is beyond the model's max_position_embeddings of {most}"
            )));
        }
        Ok(seq_length)
    }

    /// Rows of a step.
    fn rows(&self, seq_length: usize) -> Outcome<usize> {
        let tokens = match self.global_batch_tokens {
            Some(tokens) => tokens,
            None => TOKENS_PER_STEP.max(seq_length.saturating_mul(self.devices)),
        };
        if tokens > MOST_TOKENS {
            return Err(Failure::usage(format!(
                "a step of {tokens} tokens is beyond what any machine holds"
            )));
        }
        match tokens / seq_length {
            0 => Err(Failure::usage(format!(
                "--global_batch_tokens {tokens} is less than one row of {seq_length} tokens"
            ))),
            rows => Ok(rows),
        }
    }

    fn cuts(&self) -> Vec<CutChoice> {
        let is_asked_for = |cut: &CutChoice| match (self.strategy, self.zero_stage) {
            (None, _) => true,
            (Some(StrategyChoice::Fsdp), _) => cut.level == ShardingLevel::Parameters,
            (Some(StrategyChoice::Deepspeed), None) => cut.zero_stage().is_some(),
            (Some(StrategyChoice::Deepspeed), stage) => cut.zero_stage() == stage,
        };
        CutChoice::ALL.into_iter().filter(is_asked_for).collect()
    }

    fn lora(&self) -> Outcome<Option<LoraConfig>> {
        let targets = LoraTargets::from_text(&self.lora_target_modules)
            .map_err(|error| Failure::usage(format!("--lora_target_modules: {error}")))?;
        Ok((self.lora_r > 0).then(|| LoraConfig {
            r: self.lora_r,
            alpha: 16.0,
            dropout: 0.0,
            use_rslora: false,
            targets,
        }))
    }
}
