//! The command line as it is typed.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, ValueEnum};
use serde::Serialize;
use tandem_model::Recompute;
use tandem_tensor::DeviceChoice;
use tandem_trainer::Schedule;

use crate::checkpoint_args::CheckpointArgs;
use crate::cluster_args::ClusterArgs;

const AFTER_HELP: &str = "\
Ranks form a mesh of tp_size x dp_size, rank = dp_rank * tp_size + tp_rank: tensor parallel groups are rows
({0,1}, {2,3} for 2 x 2), data parallel groups are columns ({0,2}, {1,3}). All ranks of a row see the same batch.

Started by itself, this program is the controller: it starts num_workers copies of itself on this machine. Started
with RANK and WORLD_SIZE set (torchrun), under Slurm or Open MPI, it is one worker. With --cluster ray, Ray Train starts
the workers on a Ray cluster.

Ctrl-C, SIGTERM: all workers finish their step, save and leave; a second time: they leave at once. SIGUSR1: save now and go on.

Exit codes: 0 done, 1 failed, 2 wrong usage, 75 stopped after saving (--resume_from continues), 130 interrupted and 143
terminated without saving.";

/// Trains with tensor parallelism inferred from the model (AutoTP) and ZeRO over the data parallel group.
#[derive(Debug, Clone, Parser, Serialize)]
#[command(name = "train_deepspeed", version, about, after_help = AFTER_HELP, rename_all = "snake_case")]
pub struct DeepSpeedArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,

    /// What is sharded over the data parallel group: 0 nothing, 1 optimizer states, 2 also gradients. (Sharded
    /// parameters are train_fsdp.)
    #[arg(long, default_value_t = 1, help_heading = "Strategy")]
    pub zero_stage: u8,

    /// Correct the inferred plan: REGEX=STYLE for modules whose path matches, STYLE one of colwise, rowwise, replicate,
    /// vocab. May be repeated.
    #[arg(long, value_name = "REGEX=STYLE", help_heading = "Strategy")]
    pub autotp_override: Vec<String>,
}

/// Trains with a declared tensor parallel plan (DTensor) and parameters sharded over the data parallel group (FSDP2).
#[derive(Debug, Clone, Parser, Serialize)]
#[command(name = "train_fsdp", version, about, after_help = AFTER_HELP, rename_all = "snake_case")]
pub struct FsdpArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,

    /// Keep parameters, residual stream, norms and loss in fp32 and run matrix products in bf16 (needs --dtype bf16).
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, help_heading = "Strategy")]
    pub autocast: bool,

    /// Free a layer's gathered parameters after forward and gather them again for backward: less memory, one more
    /// all-gather per layer.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set, help_heading = "Strategy")]
    pub reshard_after_forward: bool,

    /// Kind of the gradients on the wire; they are accumulated in fp32 always.
    #[arg(long, value_enum, default_value_t = Dtype::Fp32, help_heading = "Strategy")]
    pub reduce_dtype: Dtype,
}

/// What both entry points share.
#[derive(Debug, Clone, Args, Serialize)]
#[command(rename_all = "snake_case")]
pub struct CommonArgs {
    /// A Hugging Face model: hub name, or folder with config.json, tokenizer.json and *.safetensors.
    #[arg(long, default_value = "Qwen/Qwen2-7B", help_heading = "Model")]
    pub model_name: String,

    /// Where the weights come from.
    #[arg(long, value_enum, default_value_t = InitChoice::Pretrained, help_heading = "Model")]
    pub init: InitChoice,

    /// Keep only the first N layers; 0 keeps all.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Model")]
    pub num_layers: usize,

    /// Ranks that share one copy of the model (a row of the mesh).
    #[arg(long, help_heading = "Mesh")]
    pub tp_size: usize,

    /// Copies of the model that see different data (rows of the mesh).
    #[arg(long, default_value_t = 1, help_heading = "Mesh")]
    pub dp_size: usize,

    /// Workers in all: tp_size x dp_size.
    #[arg(long, help_heading = "Mesh")]
    pub num_workers: usize,

    /// Cut the residual stream over the tensor parallel row by token: less memory for activations.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, help_heading = "Mesh")]
    pub sequence_parallel: bool,

    /// Where to compute.
    #[arg(long, default_value = "auto", value_parser = parse_device, help_heading = "Mesh")]
    #[serde(serialize_with = "serialize_device")]
    pub device: DeviceChoice,

    /// Seconds that a rank waits for the others in one collective.
    #[arg(long, default_value_t = 300, help_heading = "Mesh")]
    pub comm_timeout_s: u64,

    /// Rows per worker in one forward and backward.
    #[arg(long, default_value_t = 1, help_heading = "Batch")]
    pub batch_size: usize,

    /// Tokens per row.
    #[arg(long, default_value_t = 2048, help_heading = "Batch")]
    pub seq_length: usize,

    /// Forward and backward passes per optimizer step.
    #[arg(long, default_value_t = 1, help_heading = "Batch")]
    pub gradient_accumulation_steps: usize,

    /// Join documents with the end-of-text token and cut them into rows of seq_length; false: one document a row,
    /// truncated or padded.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set, help_heading = "Batch")]
    pub packing: bool,

    /// A hub name (`wikitext` is Salesforce/wikitext), or a file or folder of .txt, .jsonl or .parquet.
    #[arg(long, default_value = "wikitext", help_heading = "Data")]
    pub dataset_name: String,

    /// The dataset's configuration on the hub; wikitext's default is wikitext-2-raw-v1.
    #[arg(long, help_heading = "Data")]
    pub dataset_config: Option<String>,

    /// The dataset's split.
    #[arg(long, default_value = "train", help_heading = "Data")]
    pub dataset_split: String,

    /// Use the first so many percent of the documents.
    #[arg(long, default_value_t = 100.0, help_heading = "Data")]
    pub dataset_percentage: f64,

    /// The column that holds the text.
    #[arg(long, default_value = "text", help_heading = "Data")]
    pub text_column: String,

    /// Passes over the data.
    #[arg(long, default_value_t = 3, help_heading = "Training")]
    pub num_epochs: u64,

    /// Optimizer steps in all; 0: no limit.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Training")]
    pub max_steps: u64,

    /// Optimizer steps per epoch; 0: no limit.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Training")]
    pub debug_steps: u64,

    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-5, help_heading = "Training")]
    pub learning_rate: f64,

    /// Shape of the learning rate after the warm-up: constant, linear or cosine.
    #[arg(long, default_value = "constant", help_heading = "Training")]
    pub lr_scheduler: Schedule,

    /// Steps in which the learning rate rises from 0.
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    pub warmup_steps: u64,

    /// Decoupled weight decay of AdamW, on all parameters.
    #[arg(long, default_value_t = 0.01, help_heading = "Training")]
    pub weight_decay: f64,

    /// Decay of AdamW's first moment.
    #[arg(long, default_value_t = 0.9, help_heading = "Training")]
    pub adam_beta1: f64,

    /// Decay of AdamW's second moment.
    #[arg(long, default_value_t = 0.999, help_heading = "Training")]
    pub adam_beta2: f64,

    /// Added to the root of AdamW's second moment.
    #[arg(long, default_value_t = 1e-8, help_heading = "Training")]
    pub adam_eps: f64,

    /// Gradients are scaled down to this global norm; 0 leaves them.
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    pub max_grad_norm: f64,

    /// Kind of parameters and activations; master weights, gradients and reductions are fp32 always.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16, help_heading = "Training")]
    pub dtype: Dtype,

    /// The same as --recompute full.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, help_heading = "Training")]
    pub activation_checkpointing: bool,

    /// What backward computes again instead of keeping it from forward [default: light].
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Training")]
    pub recompute: Option<RecomputeChoice>,

    /// Decides initial weights (--init random) and the order of the data.
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    pub seed: u64,

    /// Every so many steps, compare what must be equal on several ranks bit for bit; 0: never. (That the ranks of a row
    /// see the same batch is checked every step.)
    #[arg(
        long,
        default_value_t = 100,
        value_name = "N",
        help_heading = "Training"
    )]
    pub check_interval: u64,

    /// Where runs are kept, each in a folder of its name: a folder, or s3://, gs:// or az:// with a bucket and a prefix.
    #[arg(long, default_value = "/mnt/cluster_storage", help_heading = "Output")]
    pub storage_path: String,

    /// Where logs, metrics and token caches are kept when the storage path is object storage.
    #[arg(long, default_value = "./runs", help_heading = "Output")]
    pub local_path: PathBuf,

    /// The run's name; made up when not given.
    #[arg(long, help_heading = "Output")]
    pub experiment_name: Option<String>,

    /// Without a terminal: a line every so many steps.
    #[arg(long, default_value_t = 10, value_name = "N", help_heading = "Output")]
    pub log_interval: u64,

    /// Record this many steps, after two that warm up: a trace of every rank (open it at ui.perfetto.dev) in the folder
    /// "profile" of the run, and a table of where the time went; 0: none.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Output")]
    pub profile: u64,

    /// Write the loss of every step as JSON into this folder.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub loss_output_dir: Option<PathBuf>,

    #[command(flatten)]
    #[serde(flatten)]
    pub checkpoints: CheckpointArgs,

    #[command(flatten)]
    #[serde(flatten)]
    pub cluster: ClusterArgs,
}

impl CommonArgs {
    /// The experiment's name, if the flags give one.
    pub fn experiment(&self) -> Option<&str> {
        let resumed = self.checkpoints.resume_from.as_deref();
        resumed.or(self.experiment_name.as_deref())
    }
}

/// fp32 or bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floating point.
    Fp32,
    /// bfloat16.
    Bf16,
}

/// What is computed again in backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RecomputeChoice {
    /// Nothing: the most memory.
    None,
    /// The outputs of the norms and the product of the MLP's two branches: next to no time.
    Light,
    /// Whole layers from their inputs: the least memory, for a second forward of each layer.
    Full,
}

impl From<RecomputeChoice> for Recompute {
    fn from(choice: RecomputeChoice) -> Self {
        match choice {
            RecomputeChoice::None => Self::None,
            RecomputeChoice::Light => Self::Light,
            RecomputeChoice::Full => Self::Full,
        }
    }
}

/// Where initial weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InitChoice {
    /// The model's safetensors.
    Pretrained,
    /// New ones that depend on the seed only.
    Random,
}

fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    text.parse()
}

fn serialize_device<S: serde::Serializer>(
    device: &DeviceChoice,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match device {
        DeviceChoice::Auto => "auto",
        DeviceChoice::Cpu => "cpu",
        DeviceChoice::Cuda => "cuda",
    })
}
