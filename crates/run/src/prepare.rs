//! What a run needs before ranks meet: model, data and memory. Whoever starts the run checks all of it, so that what is
//! wrong is said once, before anything is started.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tandem_data::{
    EpochLimit, ExampleKind, Hub, Mixture, Rows, Sampler, TokenCache, Verify, Weights,
};
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{Strategy, TpSlices, UnitLayout, layouts};
use tandem_plan::{Memory, Place, Settings, Share};
use tandem_tensor::torch::cuda;
use tandem_trainer::{EvalSet, EventSink};

use crate::adapter::{Adapter, AdapterFolder};
use crate::environment::Environment;
use crate::eval_data::{self, EvalData};
use crate::examples;
use crate::failure::{Failure, Outcome};
use crate::place::place;
use crate::progress::Shown;
use crate::spec::{Compute, Identity, Init, RunSpec, Selection, Training};
use crate::trained_model::TrainedModel;
use crate::weights::Pretrained;

/// The folder of token caches, beside those of runs.
const TOKEN_CACHES: &str = "token_cache";

/// A model and data that fit together.
pub struct Prepared {
    /// The model, and how it is cut.
    pub model: Planned,
    /// What of the data is not trained on and why, a line each.
    pub left_out: Vec<String>,
    /// What the data are, a line for each dataset, where they are not just text.
    pub examples: Vec<String>,
    /// The tokens.
    pub dataset: Arc<Mixture>,
    /// Documents and tokens of all datasets.
    pub documents_and_tokens: (u64, u64),
    /// The files of the tokens, one for each dataset.
    pub token_caches: Vec<PathBuf>,
    /// The order in which rows are trained.
    pub sampler: Sampler,
    /// What is evaluated on the way, if anything.
    pub evaluation: Option<PreparedEvaluation>,
    /// Optimizer steps of the run.
    pub total_steps: u64,
}

/// Rows that a run is evaluated on.
pub struct PreparedEvaluation {
    /// The rows.
    pub data: EvalData,
    /// What of them.
    pub set: EvalSet,
}

impl Prepared {
    /// How much data there is, for a checkpoint to remember.
    pub fn data_size(&self) -> Value {
        let (documents, tokens) = self.documents_and_tokens;
        json!({"documents": documents, "tokens": tokens})
    }

    /// The value of [`TOKEN_CACHE`](crate::environment::TOKEN_CACHE) for workers; `None` where the names of several files
    /// cannot be told apart, and workers find them by themselves.
    pub fn token_cache_variable(&self) -> Option<OsString> {
        let absolute = |path: &PathBuf| std::path::absolute(path).ok();
        match &self.token_caches[..] {
            [one] => absolute(one).map(PathBuf::into_os_string),
            several => {
                let paths: Option<Vec<PathBuf>> = several.iter().map(absolute).collect();
                std::env::join_paths(paths?).ok()
            }
        }
    }
}

/// A model as a run cuts it.
pub struct Planned {
    /// Folder of the model.
    pub model_dir: PathBuf,
    /// The model.
    pub config: ModelConfig,
    /// Its first weights, unless they are random, or the run goes on from its own.
    pub pretrained: Option<Pretrained>,
    /// Its modules.
    pub tree: ModuleTree,
    /// What is trained in its place, if anything.
    pub adapter: Option<Adapter>,
    /// How it is cut.
    pub strategy: Strategy,
    /// What each rank will need.
    pub memory: Memory,
    /// Where.
    pub place: Place,
    /// The units of tp_rank 0, for their sizes.
    pub layouts: Vec<UnitLayout>,
}

/// Fetches, reads and checks the model. With `trained`, a checkpoint holds its weights, and no others are looked at. `sink`
/// sees how far the slow parts are.
pub fn plan(
    spec: &RunSpec,
    hub: &Hub,
    trained: Option<&TrainedModel>,
    sink: &mut dyn EventSink,
) -> Outcome<Planned> {
    let RunSpec {
        identity: Identity { selection, .. },
        compute: Compute { engine, .. },
        ..
    } = spec;
    let mesh = engine.mesh;
    let weights = weights_of(spec, trained);
    let (model_dir, mut config) = model(spec, hub, weights, sink)?;
    let pretrained = match weights {
        Weights::Needed => Some(Pretrained::open(&model_dir, config.clone())?),
        Weights::NotNeeded => None,
    };
    if let Some(pretrained) = &pretrained {
        config.clone_from(&pretrained.config);
    } else if let Some(trained) = trained {
        config.tie_word_embeddings = trained.tie_word_embeddings;
    }
    let tree = ModuleTree::new(&config);
    let strategy = engine.strategy_for(&config, &tree)?;
    let slices =
        TpSlices::new(&config, mesh.tp_size()).map_err(|e| Failure::usage(e.to_string()))?;
    let layouts = layouts(
        &config,
        &tree,
        &strategy.plan,
        &slices,
        (0, 0),
        engine.sequence_parallel,
    );
    let adapter = adapter(selection, &config)?;
    let adapters = adapter.as_ref().map(|it| (&it.lora, &it.tree));
    let share = Share::new(
        &config,
        &strategy.plan,
        mesh.tp_size(),
        engine.sequence_parallel,
        adapters,
    );
    let share = share.map_err(|e| Failure::usage(e.to_string()))?;
    let place = place(engine.device);
    let memory = Memory::of(&share, &settings(spec, &strategy), place);
    Ok(Planned {
        model_dir,
        config,
        pretrained,
        tree,
        adapter,
        strategy,
        memory,
        place,
        layouts,
    })
}

/// How the run computes a step, as the model of its cost takes it.
pub fn settings(spec: &RunSpec, strategy: &Strategy) -> Settings {
    let Compute {
        engine, training, ..
    } = &spec.compute;
    Settings {
        mesh: engine.mesh,
        level: strategy.level,
        precision: strategy.precision,
        reshard_after_forward: strategy.reshard_after_forward,
        sequence_parallel: engine.sequence_parallel,
        recompute: engine.recompute(),
        seq_length: spec.identity.selection.data.seq_length,
        batch_size: training.batch_size,
        micro_batches: training.gradient_accumulation_steps,
        head_chunk_rows: engine.head_chunk_rows,
    }
}

/// Whether the weights that a run begins with are wanted.
pub fn weights_of(spec: &RunSpec, trained: Option<&TrainedModel>) -> Weights {
    match (spec.compute.training.init, trained) {
        (Init::Pretrained, None) => Weights::Needed,
        (Init::Pretrained, Some(_)) | (Init::Random, _) => Weights::NotNeeded,
    }
}

/// What is trained in the place of the model, if anything.
pub fn adapter(selection: &Selection, config: &ModelConfig) -> Outcome<Option<Adapter>> {
    let flags = &selection.lora;
    let open = |folder: &PathBuf| {
        AdapterFolder::open(folder).map_err(|failure| of_flag("adapter", failure.message))
    };
    let source = flags.adapter.as_ref().map(open).transpose()?;
    let Some(lora) = flags.config(source.as_ref().map(|found| &found.lora))? else {
        return Ok(None);
    };
    let tree = ModuleTree::adapters(config, &lora).map_err(|e| Failure::usage(e.to_string()))?;
    if let Some(source) = &source {
        source
            .check(&tree)
            .map_err(|failure| of_flag("adapter", failure.message))?;
    }
    Ok(Some(Adapter { lora, tree, source }))
}

/// Fetches, reads and checks everything. `sink` sees how far the slow parts are. What `local_workers` of its workers need must
/// be there before the data are read; `None` leaves that to whoever knows the machine.
pub fn prepare(
    spec: &RunSpec,
    environment: &Environment,
    local_workers: Option<usize>,
    sink: &mut dyn EventSink,
) -> Outcome<Prepared> {
    let RunSpec {
        identity: Identity { selection, .. },
        compute: Compute {
            engine, training, ..
        },
        ..
    } = spec;
    let mesh = engine.mesh;
    let hub = Hub::from_env().map_err(Failure::other)?;
    let trained = TrainedModel::of(spec, environment)?;
    let model = plan(spec, &hub, trained.as_ref(), sink)?;
    if let Some(count) = local_workers {
        check_memory(&model, count)?;
    }
    let (caches, mut left_out) = token_caches(spec, environment, &model, &hub, sink)?;
    let token_caches = caches.iter().map(|cache| cache.path().to_owned()).collect();
    let documents_and_tokens = (
        caches.iter().map(TokenCache::documents).sum(),
        caches.iter().map(TokenCache::tokens).sum(),
    );
    let dataset = examples::mixture(&selection.data, caches, selection.seed)?;
    let examples = examples::described(&selection.data, &dataset);
    let dataset = Arc::new(dataset);
    let sampler = sampler(training, selection.seed, mesh, dataset.len())?;
    left_out.extend(left_out_of(training, &dataset, &sampler));
    let evaluation = evaluation(spec, environment, &model, &hub, sink)?;
    let total_steps = match training.max_steps {
        0 => sampler.total_steps(),
        limit => sampler.total_steps().min(limit),
    };
    Ok(Prepared {
        model,
        left_out,
        examples,
        dataset,
        documents_and_tokens,
        token_caches,
        sampler,
        evaluation,
        total_steps,
    })
}

/// The model's folder, and what of it is trained.
fn model(
    spec: &RunSpec,
    hub: &Hub,
    weights: Weights,
    sink: &mut dyn EventSink,
) -> Outcome<(PathBuf, ModelConfig)> {
    let Identity {
        model_name,
        selection,
    } = &spec.identity;
    let model_dir = hub
        .model_dir(model_name, weights, &mut Shown::to(sink))
        .map_err(|error| of_flag("model_name", error))?;
    let config = ModelConfig::from_dir(&model_dir)
        .and_then(|config| config.truncated(selection.num_layers))
        .map_err(Failure::other)?;
    let balances = spec.compute.training.router_aux_loss_coef.is_some();
    if balances && config.experts.is_none() {
        return Err(Failure::usage(format!(
            "--router_aux_loss_coef is for a mixture of experts, and {model_name} ({}) has none",
            config.family
        )));
    }
    if selection.data.seq_length > config.max_position_embeddings {
        return Err(Failure::usage(format!(
            "--seq_length {} is beyond the model's max_position_embeddings of {}",
            selection.data.seq_length, config.max_position_embeddings
        )));
    }
    Ok((model_dir, config))
}

/// The error about what the flag `flag` names.
fn of_flag(flag: &str, error: impl std::fmt::Display) -> Failure {
    Failure::other(format!("--{flag}: {error}"))
}

/// Refuses a run that the memory of this host or of its GPUs, or a limit on it, cannot hold with `local_workers` of its workers.
pub fn check_memory(model: &Planned, local_workers: usize) -> Outcome<()> {
    let Planned { memory, place, .. } = model;
    let of_host = match place {
        Place::Cpu => memory.needed(Place::Cpu),
        // What computes is on the GPU; what is saved is copied from there.
        Place::Cuda => memory.saving,
    };
    let all = of_host.saturating_mul(local_workers as u64);
    let gpu = match place {
        Place::Cpu => None,
        Place::Cuda => cuda::memory(0).map(|(free, _)| free),
    };
    let limits = [
        (memory.total(), gpu, "of each GPU are free"),
        (
            all,
            tandem_tensor::memory::available_bytes(),
            "are available here",
        ),
        (
            of_host,
            tandem_tensor::memory::address_space_left(),
            "are left to each by the limit of address space (ulimit -v)",
        ),
    ];
    for (needed, available, what) in limits {
        let Some(available) = available.filter(|available| needed > *available) else {
            continue;
        };
        let gb = |bytes: u64| bytes as f64 / 1e9;
        return Err(Failure::other(format!(
            "not enough memory: {local_workers} workers of about {:.2} GB each need {:.2} GB, and {:.2} GB {what};\n  \
             use a larger --dp_size with train_fsdp, a larger --tp_size, --activation_checkpointing, a smaller --batch_size or\n  \
             --seq_length, or --num_layers; `tandem plan` shows what fits",
            gb(memory.needed(*place)),
            gb(needed),
            gb(available),
        )));
    }
    Ok(())
}

/// One for each dataset, and what of their files and rows is left out.
fn token_caches(
    spec: &RunSpec,
    environment: &Environment,
    model: &Planned,
    hub: &Hub,
    sink: &mut dyn EventSink,
) -> Outcome<(Vec<TokenCache>, Vec<String>)> {
    let data = &spec.identity.selection.data;
    let datasets = data.datasets();
    let built = environment.token_caches(datasets.len());
    if built.len() == datasets.len() && built.iter().all(|path| path.is_file()) {
        // Whoever built them has said what is left out.
        let open = |path: &PathBuf| TokenCache::open(path, Verify::Header).map_err(Failure::other);
        let caches: Outcome<Vec<TokenCache>> = built.iter().map(open).collect();
        return Ok((caches?, Vec::new()));
    }
    // In shared storage, all hosts of a cluster and all runs use one cache.
    let cache_dir = spec.output.local_folder().join(TOKEN_CACHES);
    let mut shown = Shown::to(sink);
    let tokenizer = examples::model_tokenizer(data, &model.model_dir, &model.config)?;
    let (mut caches, mut left_out) = (Vec::new(), Vec::new());
    for dataset in &datasets {
        // Of several, each line says which.
        let what = match datasets.len() {
            1 => "the dataset",
            _ => &dataset.name,
        };
        let source = examples::source(data, &dataset.name, hub, &mut shown)?;
        let made = examples::cache(
            data,
            (what, &source),
            &tokenizer,
            &model.model_dir,
            &cache_dir,
            &mut shown,
        )?;
        caches.push(made.0);
        left_out.extend(made.1);
    }
    Ok((caches, left_out))
}

/// The rows that the run is evaluated on, if it is.
fn evaluation(
    spec: &RunSpec,
    environment: &Environment,
    model: &Planned,
    hub: &Hub,
    sink: &mut dyn EventSink,
) -> Outcome<Option<PreparedEvaluation>> {
    let (own, training) = (&spec.compute.evaluation, &spec.compute.training);
    if !own.is_on() {
        return Ok(None);
    }
    let flag = own.flag();
    let cache_dir = spec.output.local_folder().join(TOKEN_CACHES);
    let place = eval_data::Place {
        model_dir: &model.model_dir,
        config: &model.config,
        cache_dir: &cache_dir,
        built: environment.eval_token_cache.as_deref(),
    };
    let choice = own.choice(&spec.identity.selection.data);
    let data = EvalData::prepare(&choice, flag, &place, hub, &mut Shown::to(sink))?;
    let batch_size = own.eval_batch_size.unwrap_or(training.batch_size);
    let set = data.set(batch_size, own.eval_max_batches, flag)?;
    Ok(Some(PreparedEvaluation { data, set }))
}

fn sampler(training: &Training, seed: u64, mesh: DeviceMesh, rows: u64) -> Outcome<Sampler> {
    let global_batch = mesh.dp_size() * training.batch_size * training.gradient_accumulation_steps;
    let sampler = match training.drop_last {
        true => Sampler::new(rows, seed, global_batch as u64),
        false => Sampler::of_all(rows, seed, global_batch as u64),
    };
    Ok(sampler.map_err(Failure::other)?.limited(EpochLimit {
        epochs: match training.num_epochs {
            0 => u64::MAX,
            epochs => epochs,
        },
        steps_per_epoch: (training.debug_steps > 0).then_some(training.debug_steps),
    }))
}

/// What the cut into rows and steps leaves out.
fn left_out_of(training: &Training, mixture: &Mixture, sampler: &Sampler) -> Vec<String> {
    let mut lines = Vec::new();
    let seq = mixture.seq_length();
    for (index, part) in mixture.parts().iter().enumerate() {
        let (dataset, documents) = (&part.dataset, part.dataset.cache().documents());
        let of = match mixture.parts().len() {
            1 => String::new(),
            _ => format!(" of {}", part.name),
        };
        let (cut, untrained) = (dataset.cut_documents(), dataset.untrained_documents());
        if cut > 0 {
            lines.push(format!(
                "the ends of {cut} of {} documents{of}, which are longer than a row of {seq} tokens",
                documents - untrained
            ));
        }
        if untrained > 0 && dataset.kind() != ExampleKind::Text {
            lines.push(format!(
                "{untrained} of {documents} conversations{of}, of which no token within {seq} is trained"
            ));
        }
        let rest = dataset.len() - mixture.epoch_rows(index);
        if rest > 0 {
            lines.push(format!(
                "{rest} of {} rows{of} in every epoch, by its weight: others in every epoch, until all were there",
                dataset.len()
            ));
        }
    }
    let rows = sampler.left_out();
    if rows > 0 {
        let why = match training.debug_steps {
            0 => "they do not fill a step (--drop_last)",
            _ => "--debug_steps ends it",
        };
        lines.push(format!(
            "{rows} of {} rows in every epoch: {why}",
            mixture.len()
        ));
    }
    lines
}
