//! What a run needs before ranks meet: model, data and memory. Whoever starts the run checks all of it, so that what is
//! wrong is said once, before anything is started.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tandem_data::{
    EpochLimit, ExampleKind, Hub, Progress, Rows, Sampler, TokenCache, TokenDataset, Verify,
    Weights,
};
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{Strategy, TpSlices, UnitLayout, layouts};
use tandem_trainer::{EventSink, MemoryEstimate, TrainEvent, estimate_memory};

use crate::environment::Environment;
use crate::examples;
use crate::failure::{Failure, Outcome};
use crate::spec::{Compute, Identity, Init, RunSpec, Training};
use crate::weights::Pretrained;

/// A model and data that fit together.
pub struct Prepared {
    /// Folder of the model.
    pub model_dir: PathBuf,
    /// The model.
    pub config: ModelConfig,
    /// Its first weights, unless they are random.
    pub pretrained: Option<Pretrained>,
    /// Its modules.
    pub tree: ModuleTree,
    /// How the model and its states are cut over the ranks.
    pub strategy: Strategy,
    /// What of the data is not trained on and why, a line each.
    pub left_out: Vec<String>,
    /// What the data are, where they are not text.
    pub examples: Option<String>,
    /// The tokens.
    pub dataset: Arc<TokenDataset>,
    /// Documents and tokens of the dataset.
    pub documents_and_tokens: (u64, u64),
    /// The file of the tokens.
    pub token_cache: PathBuf,
    /// The order in which rows are trained.
    pub sampler: Sampler,
    /// Optimizer steps of the run.
    pub total_steps: u64,
    /// What each rank will need.
    pub memory: MemoryEstimate,
    /// The units of tp_rank 0, for their sizes.
    pub layouts: Vec<UnitLayout>,
}

impl Prepared {
    /// How much data there is, for a checkpoint to remember.
    pub fn data_size(&self) -> Value {
        let (documents, tokens) = self.documents_and_tokens;
        json!({"documents": documents, "tokens": tokens})
    }
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
        compute: Compute { engine, training },
        ..
    } = spec;
    let mesh = engine.mesh;
    let hub = Hub::from_env().map_err(Failure::other)?;
    let (model_dir, mut config) = model(spec, &hub, sink)?;
    let pretrained = match training.init {
        Init::Pretrained => Some(Pretrained::open(&model_dir, config.clone())?),
        Init::Random => None,
    };
    if let Some(pretrained) = &pretrained {
        config.clone_from(&pretrained.config);
    }
    let tree = ModuleTree::new(&config);
    let strategy = engine.strategy.for_model(engine.dtype, &tree)?;
    let slices =
        TpSlices::new(&config, mesh.tp_size()).map_err(|e| Failure::usage(e.to_string()))?;
    let layouts = layouts(
        &config,
        &tree,
        &strategy.plan,
        &slices,
        0,
        engine.sequence_parallel,
    );
    let memory = estimate_memory(
        &config,
        &layouts,
        strategy.level,
        strategy.precision,
        mesh.dp_size(),
        (training.batch_size, selection.data.seq_length),
        engine.recompute(),
        engine.head_chunk_rows,
    );
    if let Some(count) = local_workers {
        check_memory(&memory, count)?;
    }
    let (cache, mut left_out) = token_cache(spec, environment, &model_dir, &config, &hub, sink)?;
    let token_cache = cache.path().to_owned();
    let documents_and_tokens = (cache.documents(), cache.tokens());
    let examples = examples::described(&selection.data, &cache);
    let dataset = examples::rows(&selection.data, cache)?;
    let dataset = Arc::new(dataset);
    let sampler = sampler(training, selection.seed, mesh, dataset.len())?;
    left_out.extend(left_out_of(training, &dataset, &sampler));
    let total_steps = match training.max_steps {
        0 => sampler.total_steps(),
        limit => sampler.total_steps().min(limit),
    };
    Ok(Prepared {
        model_dir,
        config,
        pretrained,
        tree,
        strategy,
        left_out,
        examples,
        dataset,
        documents_and_tokens,
        token_cache,
        sampler,
        total_steps,
        memory,
        layouts,
    })
}

/// The model's folder, and what of it is trained.
fn model(spec: &RunSpec, hub: &Hub, sink: &mut dyn EventSink) -> Outcome<(PathBuf, ModelConfig)> {
    let Identity {
        model_name,
        selection,
    } = &spec.identity;
    let weights = match spec.compute.training.init {
        Init::Pretrained => Weights::Needed,
        Init::Random => Weights::NotNeeded,
    };
    let model_dir = hub
        .model_dir(model_name, weights, &mut Shown(sink, String::new()))
        .map_err(|error| of_flag("model_name", error))?;
    let config = ModelConfig::from_dir(&model_dir)
        .and_then(|config| config.truncated(selection.num_layers))
        .map_err(Failure::other)?;
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

/// Refuses a run that the memory of this host, or a limit on it, cannot hold with `local_workers` of its workers.
pub fn check_memory(memory: &MemoryEstimate, local_workers: usize) -> Outcome<()> {
    let each = memory.total();
    let all = each.saturating_mul(local_workers as u64);
    let limits = [
        (
            all,
            tandem_tensor::memory::available_bytes(),
            "are available here",
        ),
        (
            each,
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
             --seq_length, or --num_layers",
            gb(each),
            gb(all),
            gb(available),
        )));
    }
    Ok(())
}

fn token_cache(
    spec: &RunSpec,
    environment: &Environment,
    model_dir: &Path,
    config: &ModelConfig,
    hub: &Hub,
    sink: &mut dyn EventSink,
) -> Outcome<(TokenCache, Vec<String>)> {
    let data = &spec.identity.selection.data;
    let built = environment.token_cache.as_deref();
    if let Some(path) = built.filter(|path| path.is_file()) {
        // Whoever built it has said what is left out.
        let cache = TokenCache::open(path, Verify::Header).map_err(Failure::other)?;
        return Ok((cache, Vec::new()));
    }
    // In shared storage, all hosts of a cluster and all runs use one cache.
    let cache_dir = spec.output.local_folder().join("token_cache");
    let mut shown = Shown(sink, String::new());
    let tokenizer = examples::tokenizer(data, model_dir)?;
    if tokenizer.vocab_size() > config.vocab_size {
        return Err(Failure::other(format!(
            "the tokenizer of {} has {} tokens, but the model's vocabulary has {}; they belong to different models",
            model_dir.display(),
            tokenizer.vocab_size(),
            config.vocab_size
        )));
    }
    let source = examples::source(data, hub, &mut shown)?;
    let encoder = examples::encoder(data, source.kind(), tokenizer, model_dir)?;
    let cache = TokenCache::build_or_open(&source, &encoder, &cache_dir, &mut shown)
        .map_err(examples::failure)?;
    let files = source.left_out().map(|files| format!("files: {files}"));
    let mut left_out: Vec<String> = files.into_iter().collect();
    if cache.refused() > 0 {
        left_out.push(format!(
            "{} of {} rows of the dataset, which the chat template refuses (`tandem data preview --documents` says why)",
            cache.refused(),
            cache.refused() + cache.documents()
        ));
    }
    Ok((cache, left_out))
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
fn left_out_of(training: &Training, dataset: &TokenDataset, sampler: &Sampler) -> Vec<String> {
    let mut lines = Vec::new();
    let (cut, seq) = (dataset.cut_documents(), dataset.seq_length());
    if cut > 0 {
        lines.push(format!(
            "the ends of {cut} of {} documents, which are longer than a row of {seq} tokens",
            dataset.len()
        ));
    }
    let untrained = dataset.untrained_documents();
    if untrained > 0 && dataset.kind() != ExampleKind::Text {
        lines.push(format!(
            "{untrained} of {} conversations, of which no token within {seq} is trained",
            untrained + dataset.len()
        ));
    }
    let rows = sampler.left_out();
    if rows > 0 {
        let why = match training.debug_steps {
            0 => "they do not fill a step (--drop_last)",
            _ => "--debug_steps ends it",
        };
        lines.push(format!(
            "{rows} of {} rows in every epoch: {why}",
            dataset.len()
        ));
    }
    lines
}

/// The data crate's progress as events.
struct Shown<'a>(&'a mut dyn EventSink, String);

impl Progress for Shown<'_> {
    fn begin(&mut self, what: &str) {
        what.clone_into(&mut self.1);
    }

    fn update(&mut self, done: u64, total: u64) {
        self.0.event(TrainEvent::Progress {
            what: self.1.clone(),
            done,
            total,
        });
    }
}
