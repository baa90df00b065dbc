//! Every way to train a model on so many devices, best first.

use tandem_mesh::{DeviceMesh, MeshError};
use tandem_model::lora::LoraConfig;
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_parallel::{Plan, PlanError, Precision, ShardingLevel};

use crate::device::Device;
use crate::flops;
use crate::memory::Memory;
use crate::place::Place;
use crate::settings::Settings;
use crate::share::Share;
use crate::time::{Kernels, StepTime};

/// What is to be trained on what. An axis without a value is searched.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// How a row cuts it, experts included.
    pub plan: &'a Plan,
    /// What is trained in its place, if anything, and its modules.
    pub adapters: Option<(&'a LoraConfig, &'a ModuleTree)>,
    /// How many devices there are.
    pub devices: usize,
    /// What they are.
    pub device: &'a Device,
    /// How passes over memory are computed there.
    pub kernels: Kernels,
    /// Kinds of numbers.
    pub precision: Precision,
    /// Tokens of a row of the batch.
    pub seq_length: usize,
    /// Rows of a step, all ranks together.
    pub rows: usize,
    /// Rows of the head whose logits exist at the same time.
    pub head_chunk_rows: usize,
    /// The strategies, by their names and what they cut.
    pub cuts: &'a [CutChoice],
    /// Ranks of a row.
    pub tp_size: Option<usize>,
    /// Ranks over which the experts of a mixture are spread.
    pub expert_parallel: Option<usize>,
    /// Whether the residual stream is cut.
    pub sequence_parallel: Option<bool>,
    /// What backward computes again.
    pub recompute: Option<Recompute>,
    /// Rows of a micro-batch.
    pub batch_size: Option<usize>,
}

/// One way to cut states over the column, as an entry point offers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutChoice {
    /// What is cut.
    pub level: ShardingLevel,
    /// Whether gathered parameters are freed after forward.
    pub reshard_after_forward: bool,
}

impl CutChoice {
    /// All of `train_fsdp`, then all of `train_deepspeed`.
    pub const ALL: [Self; 5] = [
        Self::of(ShardingLevel::Parameters, true),
        Self::of(ShardingLevel::Parameters, false),
        Self::of(ShardingLevel::Gradients, false),
        Self::of(ShardingLevel::Optimizer, false),
        Self::of(ShardingLevel::Replicated, false),
    ];

    const fn of(level: ShardingLevel, reshard_after_forward: bool) -> Self {
        Self {
            level,
            reshard_after_forward,
        }
    }

    /// The stage of ZeRO; `None` is FSDP.
    pub fn zero_stage(self) -> Option<u8> {
        match self.level {
            ShardingLevel::Replicated => Some(0),
            ShardingLevel::Optimizer => Some(1),
            ShardingLevel::Gradients => Some(2),
            ShardingLevel::Parameters => None,
        }
    }
}

/// One way to train, with what it costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// What is cut over the column.
    pub cut: CutChoice,
    /// Ranks over which the experts of a mixture are spread; with 1, a row cuts each.
    pub expert_parallel: usize,
    /// All else.
    pub settings: Settings,
    /// Of a rank.
    pub memory: Memory,
    /// Whether that is there.
    pub fits: bool,
    /// Of a step.
    pub time: StepTime,
    /// Tokens per second, all devices together.
    pub tokens_per_s: f64,
    /// The part of the devices' peak that useful arithmetic is.
    pub mfu: f64,
}

/// What a device's memory may be filled to: allocators lose some to pieces of the wrong size.
const FILLED: f64 = 0.94;

/// The largest micro-batch that is tried.
const MOST_ROWS: usize = 256;

/// Nothing to choose from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCandidate {
    /// No mesh suits the model or the batch.
    #[error(
        "{devices} devices cannot share {rows} rows a step of this model: no tp_size (at most its {heads} heads) leaves a dp_size \
         that divides the rows; use another --global_batch_tokens, or another number of devices"
    )]
    NoMesh {
        /// Devices.
        devices: usize,
        /// Rows of a step.
        rows: usize,
        /// Heads of the model.
        heads: usize,
    },
    /// The model's experts cannot be spread as asked for.
    #[error(transparent)]
    Experts(#[from] PlanError),
    /// The devices are no such groups.
    #[error(transparent)]
    Groups(#[from] MeshError),
}

/// All candidates: first those that fit, the fastest first; then the others, the smallest first.
///
/// # Errors
/// [`NoCandidate`].
pub fn search(question: &Question<'_>) -> Result<Vec<Candidate>, NoCandidate> {
    let tree = ModuleTree::new(question.config);
    let adapters = question.adapters;
    let flops = flops::per_step(
        question.config,
        &tree,
        adapters.map(|(_, tree)| tree),
        question.rows as u64 * question.seq_length as u64,
        question.seq_length as u64,
    );
    let plans = plans(question, &tree)?;
    let mut candidates = Vec::new();
    for tp_size in divisors(question.devices) {
        let dp_size = question.devices / tp_size;
        let is_asked_for = question.tp_size.is_none_or(|asked| asked == tp_size);
        let (Ok(mesh), true) = (DeviceMesh::new(tp_size, dp_size), is_asked_for) else {
            continue;
        };
        if !question.rows.is_multiple_of(dp_size) {
            continue;
        }
        for sequence_parallel in options(question.sequence_parallel, &[false, true]) {
            if sequence_parallel && tp_size == 1 && question.sequence_parallel.is_none() {
                continue;
            }
            let base = Settings {
                mesh,
                level: ShardingLevel::Parameters,
                precision: question.precision,
                reshard_after_forward: true,
                sequence_parallel,
                recompute: Recompute::Light,
                seq_length: question.seq_length,
                batch_size: 1,
                micro_batches: 1,
                head_chunk_rows: question.head_chunk_rows,
            };
            for plan in &plans {
                let share = Share::new(question.config, plan, tp_size, sequence_parallel, adapters);
                // A row may have more ranks than the model can be cut for.
                let Ok(share) = share else { continue };
                for settings in all_settings(question, base, &share) {
                    candidates.push(question.evaluate(&share, settings, flops));
                }
            }
        }
    }
    candidates.sort_by(|a, b| {
        let misfits = |it: &Candidate| !it.fits;
        let key = |it: &Candidate| match it.fits {
            true => it.time.total_s(),
            false => it.memory.total() as f64,
        };
        misfits(a)
            .cmp(&misfits(b))
            .then(key(a).total_cmp(&key(b)))
            .then(a.memory.total().cmp(&b.memory.total()))
    });
    match candidates.is_empty() {
        false => Ok(candidates),
        true => Err(NoCandidate::NoMesh {
            devices: question.devices,
            rows: question.rows,
            heads: question.config.num_heads,
        }),
    }
}

/// The value that is asked for, or all.
fn options<T: Copy>(asked: Option<T>, all: &[T]) -> Vec<T> {
    asked.map_or_else(|| all.to_vec(), |value| vec![value])
}

fn divisors(of: usize) -> impl Iterator<Item = usize> {
    (1..=of).filter(move |it| of.is_multiple_of(*it))
}

/// The plan for each number of ranks over which experts may be spread: all that share them and the devices out evenly, or the one that
/// is asked for.
fn plans(question: &Question<'_>, tree: &ModuleTree) -> Result<Vec<Plan>, NoCandidate> {
    let config = question.config;
    let mut layers = 0..config.num_layers;
    let experts = layers.find_map(|layer| Some(config.experts_of(layer)?.rule.experts));
    let sizes: Vec<usize> = match question.expert_parallel {
        Some(asked) => {
            DeviceMesh::new(1, question.devices)?.check_expert_groups(asked)?;
            vec![asked]
        }
        None => {
            let experts = experts.unwrap_or(1);
            divisors(question.devices)
                .filter(|size| experts.is_multiple_of(*size))
                .collect()
        }
    };
    let plan = |size| {
        question
            .plan
            .clone()
            .with_spread_experts(config, tree, size)
    };
    Ok(sizes.into_iter().map(plan).collect::<Result<_, _>>()?)
}

/// What a mesh leaves to choose.
fn all_settings(question: &Question<'_>, base: Settings, share: &Share) -> Vec<Settings> {
    let rows = question.rows / base.dp();
    let sizes: Vec<usize> = match question.batch_size {
        Some(asked) => vec![asked],
        None => divisors(rows).take_while(|it| *it <= MOST_ROWS).collect(),
    };
    let recompute = [Recompute::None, Recompute::Light, Recompute::Full];
    // Where every rank has something else there is nothing to cut.
    let cuts = match share.has_replicas(&base) {
        false => &question.cuts[..question.cuts.len().min(1)],
        true => question.cuts,
    };
    let mut all = Vec::new();
    for cut in cuts {
        for recompute in options(question.recompute, &recompute) {
            for batch_size in sizes.iter().copied().filter(|it| rows.is_multiple_of(*it)) {
                all.push(Settings {
                    level: cut.level,
                    reshard_after_forward: cut.reshard_after_forward,
                    recompute,
                    batch_size,
                    micro_batches: rows / batch_size,
                    ..base
                });
            }
        }
    }
    all
}

impl Question<'_> {
    fn evaluate(&self, share: &Share, settings: Settings, flops: f64) -> Candidate {
        let place = match self.device.cpu {
            true => Place::Cpu,
            false => Place::Cuda,
        };
        let memory = Memory::of(share, &settings, place);
        let needed = memory.needed(place);
        let time = StepTime::of(share, &settings, self.device, self.kernels);
        let peak = self.device.peak(self.precision.matmul) * self.devices as f64;
        Candidate {
            cut: CutChoice {
                level: settings.level,
                reshard_after_forward: settings.reshard_after_forward,
            },
            expert_parallel: share.expert_ranks,
            settings,
            memory,
            fits: needed as f64 <= FILLED * self.device.memory_bytes,
            time,
            tokens_per_s: settings.tokens_per_step() / time.total_s(),
            mfu: flops / time.total_s() / peak,
        }
    }
}
