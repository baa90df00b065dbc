//! Everything a run is, in types.
//!
//! A field's section says what becomes of it. Nothing else in this workspace lists the fields by name:
//!
//! | section | when a run continues | with Ray |
//! |---|---|---|
//! | [`Identity`] | refused where what it leads to differs: model, data, seed | told to the workers |
//! | [`Compute`] | may change, and is shown when it does | told to the workers |
//! | [`Output::shown`] | may change, and is shown | told to the workers |
//! | [`Output::local`] | may change | told to the workers |
//! | [`Output::experiment`] | may change | Ray decides it |
//! | [`Checkpoints::saving`] | may change, and is shown | told to the workers |
//! | [`Checkpoints::kept`] | may change, and is shown | Ray decides it |
//! | [`Checkpoints::watch`] | may change, and is shown | the bridge decides it |
//! | [`Cluster::network`] | may change | told to the workers |
//! | [`Cluster::ray`] | may change | Ray decides it |
//!
//! What the state of a checkpoint names by itself (the mesh, the seed, ...) is never shown a second time.
//! Serialised ([`wire`]), a spec is `run_config.json` and the request to Ray.

mod check;
mod continued;
mod dataset;
mod evaluation;
mod lora;
mod names;
mod ray;
mod strategy;
pub mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};
use tandem_checkpoint::{CheckpointName, Retention, Score, ScoreOrder, TrainState};
use tandem_comm::Transport;
use tandem_mesh::DeviceMesh;
use tandem_model::Recompute;
use tandem_tensor::DeviceChoice;
use tandem_trainer::{LearningRate, SaveRule, Schedule, UpdateRule, WarmupType, WeightDecayOn};

pub use dataset::NamedDataset;
pub use evaluation::{EvalChoice, EvalStrategy, Evaluation};
pub use lora::Lora;
pub use ray::{PlacementStrategy, Ray};
pub use strategy::{DeepSpeed, Dtype, Fsdp, Strategy};
pub use tandem_data::{ExampleKind, Packing};

/// A run.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// What is learned from what.
    pub identity: Identity,
    /// How it is computed.
    pub compute: Compute,
    /// Where it goes and what is shown.
    pub output: Output,
    /// When it is saved, and what follows a failure.
    pub checkpoints: Checkpoints,
    /// Who starts the workers, and how they reach each other.
    pub cluster: Cluster,
    /// Where the values above come from, for the reader of the summary. They are no part of the run.
    pub notes: Vec<String>,
}

/// What is learned from what: what another model, other data or another seed would change. Compared by content, so that a
/// model in another folder is the same model.
#[derive(Debug, Clone, Serialize)]
pub struct Identity {
    /// The model's name on the hub, or its folder.
    pub model_name: String,
    /// What of it, and of which data.
    #[serde(flatten)]
    pub selection: Selection,
}

/// Which part of a model is trained on which rows. Other words can mean the same (a data set that has moved): then they
/// are shown.
#[derive(Debug, Clone, Serialize)]
pub struct Selection {
    /// The first so many layers; 0 is all.
    pub num_layers: usize,
    /// What is trained in its place.
    #[serde(flatten)]
    pub lora: Lora,
    /// The rows.
    #[serde(flatten)]
    pub data: Data,
    /// Decides random weights and the order of the data.
    pub seed: u64,
}

/// What the rows are made of.
#[derive(Debug, Clone, Serialize)]
pub struct Data {
    /// A name on the hub, or a file or folder; or several of them, each with its weight.
    #[serde(serialize_with = "names::one_or_list")]
    pub dataset_name: Vec<String>,
    /// The data set's configuration on the hub.
    pub dataset_config: Option<String>,
    /// Its split.
    pub dataset_split: String,
    /// The first so many percent of its documents.
    pub dataset_percentage: f64,
    /// What its rows are; the columns tell where it is not said.
    #[serde(serialize_with = "names::example_kind")]
    pub dataset_format: Option<ExampleKind>,
    /// The column with the text.
    pub text_column: String,
    /// Of a prompt and its completion, train the completion alone.
    pub completion_only_loss: bool,
    /// Of a conversation, train what the assistant says alone.
    pub assistant_only_loss: bool,
    /// Another chat template than the tokenizer's.
    pub chat_template_path: Option<PathBuf>,
    /// Another token than the tokenizer's that ends a document.
    pub eos_token: Option<String>,
    /// Whether documents are joined and cut into rows; where it is not said, text is and conversations are not.
    pub packing: Option<bool>,
    /// How they are joined.
    #[serde(serialize_with = "names::packing")]
    pub packing_strategy: Option<Packing>,
    /// Whether documents of a row do not see each other; where it is not said, only those of text that is wrapped do.
    pub document_mask: Option<bool>,
    /// Tokens of a row.
    pub seq_length: usize,
}

/// How a run computes.
#[derive(Debug, Clone, Serialize)]
pub struct Compute {
    /// What the engine of a rank is built from.
    #[serde(flatten)]
    pub engine: EngineSpec,
    /// What it does in a step, and how many steps there are.
    #[serde(flatten)]
    pub training: Training,
    /// What it is evaluated on on the way.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

/// What the engine of a rank is built from, besides a model. `tandem replay` and `tandem bench` build one as well.
#[derive(Debug, Clone, Serialize)]
pub struct EngineSpec {
    /// The ranks.
    #[serde(flatten)]
    pub mesh: DeviceMesh,
    /// How model and states are cut over them.
    #[serde(flatten)]
    pub strategy: Strategy,
    /// Where to compute.
    #[serde(serialize_with = "names::device")]
    pub device: DeviceChoice,
    /// Kind of parameters and activations.
    pub dtype: Dtype,
    /// Ranks over which the experts of a mixture are spread; 1 cuts each over the row.
    pub expert_parallel_size: usize,
    /// Cut the residual stream over the row by token.
    pub sequence_parallel: bool,
    /// The same as `recompute` [`Recompute::Full`].
    pub activation_checkpointing: bool,
    /// What backward computes again.
    #[serde(serialize_with = "names::recompute")]
    pub recompute: Option<Recompute>,
    /// Seconds that a rank waits for the others in one collective.
    pub comm_timeout_s: u64,
    /// Rows of the head whose logits exist at the same time.
    #[serde(skip)]
    pub head_chunk_rows: usize,
}

/// Rows of the head whose logits exist at the same time, unless somebody measures or checks with others.
pub const HEAD_CHUNK_ROWS: usize = 512;

impl EngineSpec {
    /// What happens to activations.
    pub fn recompute(&self) -> Recompute {
        match self.recompute {
            _ if self.activation_checkpointing => Recompute::Full,
            Some(choice) => choice,
            None => Recompute::Light,
        }
    }
}

/// What a step is, and how many there are.
#[derive(Debug, Clone, Serialize)]
pub struct Training {
    /// Where the first weights come from.
    pub init: Init,
    /// Rows per worker in one forward and backward.
    pub batch_size: usize,
    /// Forward and backward passes per step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data; 0 is as many as `max_steps` takes.
    pub num_epochs: u64,
    /// Steps in all; 0 is no limit.
    pub max_steps: u64,
    /// Steps per epoch; 0 is no limit.
    pub debug_steps: u64,
    /// Leave out the rows that do not fill an epoch's last step.
    pub drop_last: bool,
    /// The peak.
    pub learning_rate: f64,
    /// Its shape after the warm-up.
    pub lr_scheduler: Schedule,
    /// Steps in which it rises.
    pub warmup_steps: u64,
    /// The same as a part of all steps.
    pub warmup_ratio: f64,
    /// How it rises, for the schedules of DeepSpeed.
    pub warmup_type: WarmupType,
    /// The part of the peak where it begins to rise, for the schedules of DeepSpeed.
    pub warmup_min_ratio: f64,
    /// The last steps, in which `warmup_stable_decay` falls.
    pub decay_steps: u64,
    /// What is left of the peak at the end.
    pub min_lr_ratio: f64,
    /// Steps after which the schedule is at its end; 0 is those of the run.
    pub schedule_steps: u64,
    /// AdamW's, decoupled.
    pub weight_decay: f64,
    /// On which parameters.
    #[serde(serialize_with = "names::weight_decay_on")]
    pub weight_decay_on: WeightDecayOn,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_eps: f64,
    /// Gradients are scaled down to this norm; 0 leaves them.
    pub max_grad_norm: f64,
    /// Multiplies the square of the logarithm of the sum of all `e^logit` in the loss; 0 is none.
    pub z_loss: f64,
    /// Multiplies the loss that keeps experts in balance; `None` leaves it to the model.
    pub router_aux_loss_coef: Option<f64>,
    /// Every so many steps, replicas are compared bit by bit; 0 is never.
    pub check_interval: u64,
}

impl Training {
    /// The learning rates of a run of this many steps.
    pub fn learning_rate(&self, total_steps: u64) -> LearningRate {
        let total_steps = match self.schedule_steps {
            0 => total_steps,
            own => own,
        };
        let of_all = (total_steps as f64 * self.warmup_ratio).ceil() as u64;
        LearningRate {
            peak: self.learning_rate,
            schedule: self.lr_scheduler,
            warmup_steps: self.warmup_steps.max(of_all),
            warmup_type: self.warmup_type,
            warmup_min_ratio: self.warmup_min_ratio,
            decay_steps: self.decay_steps,
            min_lr_ratio: self.min_lr_ratio,
            total_steps,
        }
    }

    /// How gradients become updates.
    pub fn update_rule(&self) -> UpdateRule {
        UpdateRule {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_eps,
            weight_decay: self.weight_decay,
            weight_decay_on: self.weight_decay_on,
            max_grad_norm: self.max_grad_norm,
        }
    }
}

/// Where the first weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The model's safetensors.
    Pretrained,
    /// The seed.
    Random,
}

/// Where a run is kept and what is seen of it.
#[derive(Debug, Clone)]
pub struct Output {
    /// The experiment in its storage.
    pub experiment: Experiment,
    /// Files besides the storage.
    pub local: Local,
    /// What is shown and measured on the way.
    pub shown: Shown,
}

/// An experiment in its storage.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// A folder, or the URL of a bucket with a prefix.
    pub storage_path: String,
    /// Which one.
    pub name: Name,
    /// The checkpoint that it goes on from, where one is named; otherwise from the newest.
    pub checkpoint: Option<CheckpointName>,
}

/// Which experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A new one; its name is made up when none is given.
    New(Option<String>),
    /// The one of this name goes on.
    Continued(String),
}

impl Name {
    /// The name, if one is given.
    pub fn given(&self) -> Option<&str> {
        match self {
            Self::New(name) => name.as_deref(),
            Self::Continued(name) => Some(name),
        }
    }

    /// The name of the experiment that goes on.
    pub fn continued(&self) -> Option<&str> {
        match self {
            Self::New(_) => None,
            Self::Continued(name) => Some(name),
        }
    }
}

/// What a worker reads and writes where it runs.
#[derive(Debug, Clone, Serialize)]
pub struct Local {
    /// Logs, metrics and token caches, when the storage is object storage.
    pub local_path: PathBuf,
    /// Where the loss of every step is written as well.
    pub loss_output_dir: Option<PathBuf>,
    /// Take the checkpoint before a damaged one.
    pub resume_fallback: bool,
}

/// What is shown and measured on the way.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// A line with the loss every so many steps.
    pub log_interval: u64,
    /// Steps that are recorded; 0 is none.
    pub profile: u64,
}

/// When a run is saved, and what follows a failure.
#[derive(Debug, Clone, Serialize)]
pub struct Checkpoints {
    /// When and how workers save.
    #[serde(flatten)]
    pub saving: Saving,
    /// What stays, and what follows a failure. Ray Train decides this for the runs that it starts.
    #[serde(flatten)]
    pub kept: Kept,
    /// What counts as a failure.
    #[serde(flatten)]
    pub watch: Watch,
}

/// When and how workers save.
#[derive(Debug, Clone, Serialize)]
pub struct Saving {
    /// Every so many steps besides the ends of epochs; 0 is only then.
    pub save_steps: u64,
    /// Write while training goes on.
    pub async_save: bool,
}

impl Saving {
    /// When checkpoints are written.
    pub fn rule(&self) -> SaveRule {
        SaveRule {
            every: self.save_steps,
            asynchronous: self.async_save,
        }
    }
}

/// Which checkpoints stay, and how often a run is started again.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Kept {
    /// Failures that are followed by a restart.
    #[schemars(
        range(min = -1),
        extend("x-expected" = "a whole number, 0 or more, or -1 for no limit")
    )]
    pub max_failures: i64,
    /// Checkpoints to keep; all when absent.
    #[schemars(range(min = 1))]
    pub num_to_keep: Option<usize>,
    /// Keep the best by this number instead of the newest.
    #[schemars(length(min = 1))]
    pub checkpoint_score_attribute: Option<String>,
    /// What is best.
    #[serde(serialize_with = "names::score_order")]
    #[schemars(with = "String", extend("enum" = ["max", "min"]))]
    pub checkpoint_score_order: ScoreOrder,
}

impl Kept {
    /// Which checkpoints stay.
    pub fn retention(&self) -> Retention {
        let score = |attribute: &String| Score {
            attribute: attribute.clone(),
            order: self.checkpoint_score_order,
        };
        Retention {
            num_to_keep: self.num_to_keep,
            score: self.checkpoint_score_attribute.as_ref().map(score),
        }
    }
}

/// What counts as a failure.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Watch {
    /// Seconds without a sign of life; 0 is never.
    #[schemars(
        with = "f64",
        range(min = 0),
        extend("x-expected" = "a number of seconds, or 0 for no limit")
    )]
    pub hang_timeout_s: u64,
}

/// Who starts the workers, and how they reach each other.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// How ranks reach each other.
    pub network: Network,
    /// What Ray Train is asked for; without it, this program starts the workers on this machine.
    pub ray: Option<Ray>,
}

/// How ranks reach each other.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Network {
    /// The interface whose address other hosts should use; otherwise the one on the way to rank 0.
    pub network_interface: Option<String>,
    /// A file with the run's secret, the same for all ranks; otherwise their launcher gives it.
    pub rendezvous_secret_file: Option<PathBuf>,
    /// How groups move data.
    #[serde(serialize_with = "names::transport")]
    pub transport: Transport,
}

impl RunSpec {
    /// What a checkpoint keeps of the spec, so that the run which continues from it can show what has changed.
    pub fn settings(&self) -> BTreeMap<String, Value> {
        let named_by_the_state = object(&TrainState::default());
        let mut settings = Map::new();
        // A run that goes on in another folder has not changed. A path that cannot be made absolute stays as it is.
        let spec = self.clone().for_other_folders("", None);
        let spec = spec.as_ref().unwrap_or(self);
        for section in [
            object(&spec.identity.selection),
            object(&spec.compute),
            object(&spec.output.shown),
            object(&spec.checkpoints),
        ] {
            settings.extend(section);
        }
        settings
            .into_iter()
            .filter(|(name, _)| !named_by_the_state.contains_key(name))
            .collect()
    }
}

/// A section's fields by name.
fn object(section: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(section) {
        Ok(Value::Object(fields)) => fields,
        // Sections are structs with names for keys.
        other => unreachable!("a section is an object: {other:?}"),
    }
}
