//! The flags of the two entry points.

use std::path::PathBuf;

use clap::builder::ArgPredicate;
use clap::{ArgAction, Args, Parser};
use tandem_mesh::DeviceMesh;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::spec::{
    Compute, DeepSpeed, EngineSpec, Experiment, Fsdp, HEAD_CHUNK_ROWS, Identity, Local, Name,
    Output, RunSpec, Selection, Shown, Strategy, Training,
};
use tandem_run::storage::DEFAULT_PATH;
use tandem_tensor::DeviceChoice;
use tandem_trainer::{Schedule, UpdateRule};

use crate::flags::checkpoints::CheckpointFlags;
use crate::flags::choices::{DecayChoice, Dtype, InitChoice, RecomputeChoice, WarmupChoice};
use crate::flags::cluster::ClusterFlags;
use crate::flags::data::DataFlags;
use crate::flags::eval::EvalFlags;
use crate::flags::lora::LoraFlags;

const AFTER_HELP: &str = "\
Ranks form a mesh of tp_size x dp_size, rank = dp_rank * tp_size + tp_rank: tensor parallel groups are rows
({0,1}, {2,3} for 2 x 2), data parallel groups are columns ({0,2}, {1,3}). All ranks of a row see the same batch.

Started by itself, this program is the controller: it starts num_workers copies of itself on this machine. Started
with RANK and WORLD_SIZE set (torchrun), under Slurm or Open MPI, it is one worker. With --cluster ray, Ray Train starts
the workers on a Ray cluster.

Ctrl-C, SIGTERM, SIGHUP (a terminal that is closed; not under nohup): all workers finish their step, save and leave; a
second time, or before training has begun: they leave at once. SIGUSR1: save now and go on.

Exit codes: 0 done, 1 failed, 2 wrong usage, 75 stopped after saving (--resume_from continues), 129 hung up, 130 interrupted
and 143 terminated without saving.";

/// Trains with tensor parallelism inferred from the model (AutoTP) and ZeRO over the data parallel group.
#[derive(Debug, Clone, Parser)]
#[command(name = "train_deepspeed", version, about, after_help = AFTER_HELP, rename_all = "snake_case")]
pub struct DeepSpeedFlags {
    #[command(flatten)]
    pub common: CommonFlags,

    /// What is sharded over the data parallel group: 0 nothing, 1 optimizer states, 2 also gradients. (Sharded
    /// parameters are train_fsdp.)
    #[arg(long, default_value_t = 1, help_heading = "Strategy")]
    pub zero_stage: u8,

    /// Correct the inferred plan: REGEX=STYLE for modules whose path matches, STYLE one of colwise, rowwise, replicate,
    /// vocab. May be repeated.
    #[arg(long, value_name = "REGEX=STYLE", help_heading = "Strategy")]
    pub autotp_override: Vec<String>,

    /// DeepSpeed's own configuration file (JSON). What it says are flags; "auto" leaves a value to the flag; a flag that says
    /// otherwise is an error. docs/configuration.md has its keys.
    #[arg(long, value_name = "FILE", help_heading = "Strategy")]
    pub deepspeed: Option<PathBuf>,
}

/// Trains with a declared tensor parallel plan (DTensor) and parameters sharded over the data parallel group (FSDP2).
#[derive(Debug, Clone, Parser)]
#[command(name = "train_fsdp", version, about, after_help = AFTER_HELP, rename_all = "snake_case")]
pub struct FsdpFlags {
    #[command(flatten)]
    pub common: CommonFlags,

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
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct CommonFlags {
    /// A .yaml, .toml or .json file with flags: their names without dashes, and their values. Flags on the command line win.
    /// `run_config.json` of a run is such a file.
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub config: Option<PathBuf>,

    /// A Hugging Face model: hub name, or folder with config.json, tokenizer.json and *.safetensors.
    #[arg(long, default_value = "Qwen/Qwen2-7B", help_heading = "Model")]
    pub model_name: String,

    /// Where the weights come from.
    #[arg(long, value_enum, default_value_t = InitChoice::Pretrained, help_heading = "Model")]
    pub init: InitChoice,

    /// Keep only the first N layers; 0 keeps all.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Model")]
    pub num_layers: usize,

    /// Ranks that share one copy of the model (a row of the mesh); "auto" takes the fastest mesh of num_workers that fits, by the
    /// estimates of `tandem plan`, and dp_size follows.
    #[arg(long, help_heading = "Mesh")]
    pub tp_size: usize,

    /// Copies of the model that see different data (rows of the mesh).
    #[arg(long, default_value_t = 1, help_heading = "Mesh")]
    pub dp_size: usize,

    /// Workers in all: tp_size x dp_size.
    #[arg(long, help_heading = "Mesh")]
    pub num_workers: usize,

    /// Ranks over which the experts of a mixture are spread: each expert is whole on one of so many neighbouring ranks, and tokens are
    /// sent to it. Divides tp_size x dp_size. With 1, every expert is cut over the row by columns.
    #[arg(long, default_value_t = 1, value_name = "E", help_heading = "Mesh")]
    pub expert_parallel_size: usize,

    /// Cut the residual stream over the tensor parallel row by token: less memory for activations.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, help_heading = "Mesh")]
    pub sequence_parallel: bool,

    /// Where to compute.
    #[arg(long, default_value = "auto", value_parser = |text: &str| text.parse::<DeviceChoice>(), help_heading = "Mesh")]
    pub device: DeviceChoice,

    /// Seconds that a rank waits for the others in one collective.
    #[arg(long, default_value_t = 300, help_heading = "Mesh")]
    pub comm_timeout_s: u64,

    /// Rows per worker in one forward and backward.
    #[arg(long, default_value_t = 1, help_heading = "Batch")]
    pub batch_size: usize,

    /// Forward and backward passes per optimizer step.
    #[arg(long, default_value_t = 1, help_heading = "Batch")]
    pub gradient_accumulation_steps: usize,

    #[command(flatten)]
    pub data: DataFlags,

    /// Passes over the data; 0, which is the default beside --max_steps: as many as that takes. With both flags, the run ends
    /// with what comes first.
    #[arg(
        long,
        default_value = "3",
        default_value_ifs([
            ("max_steps", ArgPredicate::Equals("0".into()), "3"),
            ("max_steps", ArgPredicate::IsPresent, "0"),
        ]),
        help_heading = "Training"
    )]
    pub num_epochs: u64,

    /// Optimizer steps in all; 0: no limit.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Training")]
    pub max_steps: u64,

    /// Leave out the rows that do not fill an epoch's last step, instead of training on them in a smaller step.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, help_heading = "Training")]
    pub drop_last: bool,

    /// Optimizer steps per epoch; 0: no limit.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Training")]
    pub debug_steps: u64,

    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-5, help_heading = "Training")]
    pub learning_rate: f64,

    /// Shape of the learning rate after the warm-up: constant, linear, cosine, cosine_with_min_lr or warmup_stable_decay, as
    /// transformers has them; warmup_lr, warmup_decay_lr or warmup_cosine_lr, as DeepSpeed does.
    #[arg(long, default_value = "constant", help_heading = "Training")]
    pub lr_scheduler: Schedule,

    /// Steps in which the learning rate rises.
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    pub warmup_steps: u64,

    /// The same as a part of all steps, rounded up.
    #[arg(long, default_value_t = 0.0, help_heading = "Training")]
    pub warmup_ratio: f64,

    /// How it rises with DeepSpeed's schedules; with the others, in a straight line.
    #[arg(long, value_enum, default_value_t = WarmupChoice::Log, help_heading = "Training")]
    pub warmup_type: WarmupChoice,

    /// Where it begins to rise with DeepSpeed's schedules, as a part of the peak.
    #[arg(long, default_value_t = 0.0, help_heading = "Training")]
    pub warmup_min_ratio: f64,

    /// What is left of the learning rate at the end, as a part of its peak (cosine_with_min_lr, warmup_stable_decay,
    /// warmup_cosine_lr).
    #[arg(long, default_value_t = 0.0, help_heading = "Training")]
    pub min_lr_ratio: f64,

    /// Steps after which the learning rate is at its end; 0: those of the run.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Training")]
    pub schedule_steps: u64,

    /// The last steps of the run, in which warmup_stable_decay falls.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Training")]
    pub decay_steps: u64,

    /// Decoupled weight decay of AdamW.
    #[arg(long, default_value_t = UpdateRule::USUAL.weight_decay, help_heading = "Training")]
    pub weight_decay: f64,

    /// The parameters that decay.
    #[arg(long, value_enum, default_value_t = DecayChoice::All, help_heading = "Training")]
    pub weight_decay_on: DecayChoice,

    /// Decay of AdamW's first moment.
    #[arg(long, default_value_t = UpdateRule::USUAL.beta1, help_heading = "Training")]
    pub adam_beta1: f64,

    /// Decay of AdamW's second moment.
    #[arg(long, default_value_t = UpdateRule::USUAL.beta2, help_heading = "Training")]
    pub adam_beta2: f64,

    /// Added to the root of AdamW's second moment.
    #[arg(long, default_value_t = UpdateRule::USUAL.eps, help_heading = "Training")]
    pub adam_eps: f64,

    /// Gradients are scaled down to this global norm; 0 leaves them.
    #[arg(long, default_value_t = UpdateRule::USUAL.max_grad_norm, help_heading = "Training")]
    pub max_grad_norm: f64,

    /// Adds this times the square of each token's logarithm of the sum of e^logit to what is trained on, which keeps logits from
    /// drifting (PaLM: 1e-4); the reported loss stays the cross entropy. 0 is none.
    #[arg(long, default_value_t = 0.0, help_heading = "Training")]
    pub z_loss: f64,

    /// Multiplies the loss that keeps the experts of a mixture in balance; 0 is none [default: config.json's, where it asks for the
    /// router's logits].
    #[arg(long, help_heading = "Training")]
    pub router_aux_loss_coef: Option<f64>,

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

    #[command(flatten)]
    pub lora: LoraFlags,

    #[command(flatten)]
    pub evaluation: EvalFlags,

    /// Where runs are kept, each in a folder of its name: a folder, or s3://, gs:// or az:// with a bucket and a prefix.
    #[arg(long, default_value = DEFAULT_PATH, help_heading = "Output")]
    pub storage_path: String,

    /// Where logs, metrics and token caches are kept when the storage path is object storage; and where the last state is saved when
    /// a storage path that is a folder vanishes while training (unmounted, removed), or does not take it (full, read only).
    #[arg(long, default_value = "./runs", help_heading = "Output")]
    pub local_path: PathBuf,

    /// The run's name; made up when not given.
    #[arg(long, help_heading = "Output")]
    pub experiment_name: Option<String>,

    /// A line with the loss every so many steps.
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
    pub checkpoints: CheckpointFlags,

    #[command(flatten)]
    pub cluster: ClusterFlags,
}

impl DeepSpeedFlags {
    /// The run that they ask for.
    ///
    /// # Errors
    /// Wrong usage: what cannot be, or contradicts itself.
    pub fn into_spec(self) -> Outcome<RunSpec> {
        let Self {
            common,
            zero_stage,
            autotp_override,
            // All that it says is said by other flags.
            deepspeed: _,
        } = self;
        common.into_spec(Strategy::DeepSpeed(DeepSpeed {
            zero_stage,
            autotp_override,
        }))
    }
}

impl FsdpFlags {
    /// The run that they ask for.
    ///
    /// # Errors
    /// Wrong usage: what cannot be, or contradicts itself.
    pub fn into_spec(self) -> Outcome<RunSpec> {
        let Self {
            common,
            autocast,
            reshard_after_forward,
            reduce_dtype,
        } = self;
        common.into_spec(Strategy::Fsdp(Fsdp {
            autocast,
            reshard_after_forward,
            reduce_dtype: reduce_dtype.into(),
        }))
    }
}

// A test (`flags`) finds a flag that has no place here.
impl CommonFlags {
    fn into_spec(self, strategy: Strategy) -> Outcome<RunSpec> {
        let mesh = DeviceMesh::for_workers(self.tp_size, self.dp_size, self.num_workers)
            .map_err(|error| Failure::usage(error.to_string()))?;
        self.cluster.check(self.device)?;
        let (identity, training, shown) = (self.identity(), self.training(), self.shown());
        let (cluster, device) = self.cluster.into_spec(self.device);
        let (checkpoints, resume) = self.checkpoints.into_spec();
        let engine = EngineSpec {
            mesh,
            expert_parallel_size: self.expert_parallel_size,
            strategy,
            device,
            dtype: self.dtype.into(),
            sequence_parallel: self.sequence_parallel,
            activation_checkpointing: self.activation_checkpointing,
            recompute: self.recompute.map(Into::into),
            comm_timeout_s: self.comm_timeout_s,
            head_chunk_rows: HEAD_CHUNK_ROWS,
        };
        let output = Output {
            experiment: experiment(
                at_home(self.storage_path),
                resume.from.map(at_home),
                self.experiment_name,
            )?,
            local: Local {
                local_path: at_home(self.local_path.to_string_lossy().into_owned()).into(),
                loss_output_dir: self.loss_output_dir,
                resume_fallback: resume.fallback,
            },
            shown,
        };
        RunSpec {
            identity,
            compute: Compute {
                engine,
                training,
                evaluation: self.evaluation.to_spec(),
            },
            output,
            checkpoints,
            cluster,
            notes: Vec::new(),
        }
        .checked()
    }

    fn identity(&self) -> Identity {
        Identity {
            model_name: self.model_name.clone(),
            selection: Selection {
                num_layers: self.num_layers,
                lora: self.lora.to_spec(),
                data: self.data.to_spec(),
                seed: self.seed,
            },
        }
    }

    fn training(&self) -> Training {
        Training {
            init: self.init.into(),
            batch_size: self.batch_size,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            num_epochs: self.num_epochs,
            max_steps: self.max_steps,
            debug_steps: self.debug_steps,
            drop_last: self.drop_last,
            learning_rate: self.learning_rate,
            lr_scheduler: self.lr_scheduler,
            warmup_steps: self.warmup_steps,
            warmup_ratio: self.warmup_ratio,
            warmup_type: self.warmup_type.into(),
            warmup_min_ratio: self.warmup_min_ratio,
            decay_steps: self.decay_steps,
            min_lr_ratio: self.min_lr_ratio,
            schedule_steps: self.schedule_steps,
            weight_decay: self.weight_decay,
            weight_decay_on: self.weight_decay_on.into(),
            adam_beta1: self.adam_beta1,
            adam_beta2: self.adam_beta2,
            adam_eps: self.adam_eps,
            max_grad_norm: self.max_grad_norm,
            z_loss: self.z_loss,
            router_aux_loss_coef: self.router_aux_loss_coef,
            check_interval: self.check_interval,
        }
    }

    fn shown(&self) -> Shown {
        Shown {
            log_interval: self.log_interval,
            profile: self.profile,
        }
    }
}

/// Which experiment the flags mean.
fn experiment(
    storage_path: String,
    resume_from: Option<String>,
    experiment_name: Option<String>,
) -> Outcome<Experiment> {
    let Some(resume) = resume_from else {
        return Ok(Experiment {
            storage_path,
            name: Name::New(experiment_name),
            checkpoint: None,
        });
    };
    let continued = Experiment::continued(storage_path, &resume)?;
    match experiment_name {
        Some(name) if continued.name.continued() != Some(&name) => Err(Failure::usage(format!(
            "--resume_from {resume} continues that experiment in place, but --experiment_name is {name}; leave \
             --experiment_name out"
        ))),
        _ => Ok(continued),
    }
}

/// `~/x` in the user's home, which shells put there only where a word begins with it (not in `--flag=~/x`).
pub fn at_home(path: String) -> String {
    let rest = path
        .strip_prefix('~')
        .filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match (rest, std::env::home_dir()) {
        (Some(rest), Some(home)) => format!("{}{rest}", home.display()),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MESH: [&str; 6] = ["--tp_size", "2", "--dp_size", "2", "--num_workers", "4"];

    fn fsdp(extra: &[&str]) -> Outcome<RunSpec> {
        let args = ["train_fsdp"].iter().chain(&MESH).chain(extra);
        FsdpFlags::try_parse_from(args).unwrap().into_spec()
    }

    fn deepspeed(extra: &[&str]) -> Outcome<RunSpec> {
        let args = ["train_deepspeed"].iter().chain(&MESH).chain(extra);
        DeepSpeedFlags::try_parse_from(args).unwrap().into_spec()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let args = FsdpFlags::try_parse_from(["train_fsdp"].iter().chain(&MESH)).unwrap();
        let common = &args.common;
        assert_eq!(common.model_name, "Qwen/Qwen2-7B");
        assert_eq!(
            (common.batch_size, common.data.seq_length, common.num_epochs),
            (1, 2048, 3)
        );
        assert_eq!(
            (common.learning_rate, common.data.dataset_name[0].as_str()),
            (1e-5, "wikitext")
        );
        assert_eq!(common.storage_path, "/mnt/cluster_storage");
        assert!(!args.autocast && args.reshard_after_forward && common.data.packing.is_none());
        assert!(FsdpFlags::try_parse_from(["train_fsdp", "--tp_size", "1"]).is_err());
        let args = DeepSpeedFlags::try_parse_from(["train_deepspeed"].iter().chain(&MESH)).unwrap();
        assert_eq!(args.zero_stage, 1);
        // --flag and --flag true mean the same.
        let args = ["train_fsdp", "--autocast"].iter().chain(&MESH);
        assert!(FsdpFlags::try_parse_from(args).unwrap().autocast);
    }

    #[test]
    fn max_steps_alone_decides_how_long_a_run_is() {
        for (extra, epochs) in [
            (&[][..], 3),
            (&["--max_steps", "0"], 3),
            (&["--max_steps", "9"], 0),
            (&["--max_steps", "9", "--num_epochs", "2"], 2),
            (&["--max_steps", "9", "--num_epochs", "0"], 0),
            (&["--num_epochs", "2"], 2),
        ] {
            let training = fsdp(extra).unwrap().compute.training;
            assert_eq!(training.num_epochs, epochs, "{extra:?}");
        }
        let endless = fsdp(&["--num_epochs", "0"]).unwrap_err();
        assert!(
            endless.message.contains("--num_epochs is 0")
                && endless.message.contains("--max_steps"),
            "{}",
            endless.message
        );
    }

    #[test]
    fn impossible_flags_are_usage_errors_that_name_the_flag() {
        for (extra, word) in [
            (vec!["--num_workers", "3"], "--num_workers 4"),
            (vec!["--tp_size", "0"], "tp_size is 0"),
            (vec!["--batch_size", "0"], "--batch_size"),
            (vec!["--seq_length", "1"], "--seq_length"),
            (vec!["--learning_rate", "0"], "--learning_rate"),
            (vec!["--learning_rate", "NaN"], "--learning_rate"),
            (vec!["--dataset_percentage", "101"], "--dataset_percentage"),
            (vec!["--adam_beta2", "1"], "--adam_beta2"),
            (
                vec!["--warmup_steps", "3", "--warmup_ratio", "0.1"],
                "--warmup_ratio",
            ),
            (vec!["--warmup_ratio", "2"], "--warmup_ratio"),
            (vec!["--warmup_type", "linear"], "warmup_cosine_lr"),
            (vec!["--lr_scheduler", "warmup_lr"], "--warmup_steps"),
            (vec!["--min_lr_ratio", "0.1"], "cosine_with_min_lr"),
            (vec!["--decay_steps", "3"], "warmup_stable_decay"),
            (
                vec!["--lr_scheduler", "warmup_stable_decay"],
                "--decay_steps",
            ),
            (vec!["--experiment_name", "a/b"], "experiment"),
            (
                vec!["--resume_from", "a", "--experiment_name", "b"],
                "--resume_from a",
            ),
            (vec!["--resume_from", "a/b"], "experiment"),
            (vec!["--num_to_keep", "0"], "--num_to_keep"),
            (vec!["--max_failures", "-2"], "--max_failures"),
            (vec!["--eval_batch_size", "0"], "--eval_batch_size"),
            (
                vec!["--dataset_name=a", "--dataset_name=b", "--eval_steps=5"],
                "--eval_dataset_name",
            ),
            (vec!["--eval_strategy", "steps"], "--eval_steps"),
            (
                vec!["--eval_strategy", "epoch", "--eval_steps", "5"],
                "--eval_strategy steps",
            ),
            (
                vec!["--early_stopping_threshold", "0.1"],
                "--early_stopping_patience",
            ),
            (
                vec!["--checkpoint_score_attribute", "eval_loss"],
                "--eval_steps",
            ),
            (
                vec![
                    "--checkpoint_score_attribute",
                    "perplexity",
                    "--eval_strategy",
                    "epoch",
                    "--save_steps",
                    "4",
                ],
                "--eval_steps 4",
            ),
            (
                vec![
                    "--checkpoint_score_attribute",
                    "eval_loss",
                    "--eval_steps",
                    "10",
                    "--save_steps",
                    "4",
                ],
                "a multiple of --eval_steps 10, 10 for example",
            ),
            (vec!["--autocast", "--dtype", "fp32"], "--autocast"),
        ] {
            let args: Vec<&str> = MESH.iter().copied().filter(|_| true).collect();
            let mut line = vec!["train_fsdp"];
            // A flag that the case sets replaces the mesh's.
            for pair in args.chunks(2) {
                if !extra.contains(&pair[0]) {
                    line.extend(pair);
                }
            }
            line.extend(&extra);
            let failure = FsdpFlags::try_parse_from(line)
                .unwrap()
                .into_spec()
                .unwrap_err();
            assert_eq!(failure.exit_code, 2, "{extra:?}");
            assert!(
                failure.message.contains(word),
                "{extra:?}: {}",
                failure.message
            );
        }
        assert!(fsdp(&[]).is_ok() && deepspeed(&["--zero_stage", "2"]).is_ok());
        let failure = deepspeed(&["--zero_stage", "3"]).unwrap_err();
        assert!(failure.message.contains("train_fsdp") && failure.exit_code == 2);
        let failure = deepspeed(&["--autotp_override", "x"]).unwrap_err();
        assert!(failure.message.contains("REGEX") || failure.message.contains("PATTERN"));
    }

    /// A checkpoint shows these when a run that continues has other values. Which they are is part of its format.
    #[test]
    fn the_settings_of_a_checkpoint_stay_the_same() {
        let names = |spec: Outcome<RunSpec>| spec.unwrap().settings().into_keys().collect();
        let shared = [
            "activation_checkpointing",
            "adapter",
            "adam_beta1",
            "adam_beta2",
            "adam_eps",
            "assistant_only_loss",
            "async_save",
            "batch_size",
            "chat_template_path",
            "check_interval",
            "checkpoint_score_attribute",
            "checkpoint_score_order",
            "comm_timeout_s",
            "completion_only_loss",
            "dataset_config",
            "dataset_format",
            "dataset_name",
            "dataset_percentage",
            "dataset_split",
            "debug_steps",
            "decay_steps",
            "device",
            "document_mask",
            "drop_last",
            "dtype",
            "early_stopping_patience",
            "early_stopping_threshold",
            "eos_token",
            "eval_batch_size",
            "eval_dataset_config",
            "eval_dataset_name",
            "eval_max_batches",
            "eval_on_start",
            "eval_split",
            "eval_steps",
            "eval_strategy",
            "expert_parallel_size",
            "gradient_accumulation_steps",
            "hang_timeout_s",
            "init",
            "learning_rate",
            "log_interval",
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "use_rslora",
            "lr_scheduler",
            "max_failures",
            "max_grad_norm",
            "max_steps",
            "min_lr_ratio",
            "num_epochs",
            "num_layers",
            "num_to_keep",
            "packing",
            "packing_strategy",
            "profile",
            "recompute",
            "router_aux_loss_coef",
            "save_steps",
            "schedule_steps",
            "sequence_parallel",
            "text_column",
            "warmup_min_ratio",
            "warmup_ratio",
            "warmup_steps",
            "warmup_type",
            "weight_decay",
            "weight_decay_on",
            "z_loss",
        ];
        let with = |own: &[&str]| -> BTreeSet<String> {
            let all = shared.iter().chain(own);
            all.map(|name| (*name).to_owned()).collect()
        };
        let names_of_fsdp: BTreeSet<String> = names(fsdp(&[]));
        let own = ["autocast", "reduce_dtype", "reshard_after_forward"];
        assert_eq!(names_of_fsdp, with(&own));
        assert_eq!(names(deepspeed(&[])), with(&["autotp_override"]));
        let settings = fsdp(&["--recompute", "full", "--device", "cpu"])
            .unwrap()
            .settings();
        assert_eq!(settings["recompute"], "full");
        assert_eq!(settings["device"], "cpu");
        assert_eq!(settings["dataset_config"], serde_json::Value::Null);
    }
}
