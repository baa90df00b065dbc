//! `tandem eval`: a model's loss on a dataset, on any mesh, without a run.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::Value;
use tandem_checkpoint::{ModelFile, Reader};
use tandem_comm::Transport;
use tandem_data::{Hub, Weights};
use tandem_launch::client::ControlClient;
use tandem_launch::controller::ControllerEvent;
use tandem_launch::env::WorkerEnv;
use tandem_launch::exit_code;
use tandem_launch::protocol::{Metrics, WorkerEvent};
use tandem_model::{ModelConfig, ModuleTree};
use tandem_trainer::{EvalSet, evaluate};

use crate::adapter::SavedAdapter;
use crate::engine::{Purpose, engine};
use crate::environment::{EVAL_TOKEN_CACHE, Environment};
use crate::eval_data::{EvalData, Place};
use crate::failure::{Failure, Outcome};
use crate::libtorch::{self, Libtorch};
use crate::ranks::Ranks;
use crate::spec::{EngineSpec, EvalChoice, Network};
use crate::start::local::{self, Supervision};
use crate::storage::write_whole;
use crate::weights::Pretrained;

/// Where rank 0 leaves the result for the process that started it.
const RESULT: &str = "eval.json";

/// The flag that names the data.
const FLAG: &str = "--dataset_name";

/// What is evaluated, and how.
pub struct EvalJob {
    /// The model.
    pub model: EvalModel,
    /// The ranks.
    pub engine: EngineSpec,
    /// The rows.
    pub choice: EvalChoice,
    /// Rows of one forward pass of a rank.
    pub batch_size: usize,
    /// Only the rows of the first so many batches; 0 is all.
    pub max_batches: u64,
}

/// A model with weights.
pub struct EvalModel {
    /// Its config and tokenizer.
    dir: PathBuf,
    /// The checkpoint with its weights, if they are not in the folder.
    checkpoint: Option<Reader>,
    /// Of a checkpoint of adapters, another name of the model than its run had.
    base: Option<String>,
    /// The folder, where it is this process's own.
    _own: Option<tempfile::TempDir>,
}

impl EvalModel {
    /// A model on the hub, or in a folder.
    ///
    /// # Errors
    /// There is none, or it cannot be fetched.
    pub fn named(name: &str) -> Outcome<Self> {
        let hub = Hub::from_env().map_err(Failure::other)?;
        let dir = hub.model_dir(name, Weights::Needed, &mut ());
        let dir = dir.map_err(|error| Failure::other(format!("--model_name: {error}")))?;
        Ok(Self {
            dir,
            checkpoint: None,
            base: None,
            _own: None,
        })
    }

    /// A checkpoint, with the files that its run keeps of the model; `base` is the model of a checkpoint of adapters, where it
    /// is not where it was.
    ///
    /// # Errors
    /// They cannot be written to a folder of this process's own, or a whole model is told of another.
    pub fn saved(checkpoint: Reader, files: &[ModelFile], base: Option<&str>) -> Outcome<Self> {
        if base.is_some() && SavedAdapter::of(checkpoint.state())?.is_none() {
            return Err(Failure::usage(
                "--checkpoint holds a whole model; pass it or --model_name, not both",
            ));
        }
        let own = tempfile::tempdir().map_err(Failure::other)?;
        for file in files {
            std::fs::write(own.path().join(&file.name), &file.bytes).map_err(Failure::other)?;
        }
        Ok(Self {
            dir: own.path().to_owned(),
            checkpoint: Some(checkpoint),
            base: base.map(str::to_owned),
            _own: Some(own),
        })
    }

    /// Optimizer steps that it was trained for, as far as is known.
    fn step(&self) -> u64 {
        let state = self.checkpoint.as_ref().map(Reader::state);
        state.map_or(0, |state| state.global_step)
    }
}

/// Starts workers with `args` and waits for what they find: a line of `metrics.jsonl`, besides the rows. `on_batch` sees how
/// many batches of how many are done.
///
/// # Errors
/// What is wrong with model or data, before anything is started; a worker that failed.
pub fn run(
    job: &EvalJob,
    args: &[OsString],
    on_batch: &mut dyn FnMut(u64, u64),
) -> Outcome<Result<Value, i32>> {
    let num_workers = job.engine.mesh.world_size();
    let libtorch = Libtorch::ready(
        job.engine.device,
        libtorch::workers(num_workers, Transport::Auto),
    )?;
    let scratch = tempfile::tempdir().map_err(Failure::other)?;
    let config = job.config()?;
    let (data, _) = job.data(&config, scratch.path().join("token_cache"), None)?;
    let code = local::run_workers(
        libtorch,
        args,
        num_workers,
        scratch.path(),
        &[(EVAL_TOKEN_CACHE, data.token_cache.clone().into())],
        Supervision::NONE,
        &mut |event| {
            if let ControllerEvent::Worker {
                rank: 0,
                event: WorkerEvent::Progress { step, metrics, .. },
            } = event
            {
                on_batch(*step, metrics.get("last_step").unwrap_or_default() as u64);
            }
        },
    )?;
    if code != exit_code::OK {
        return Ok(Err(code));
    }
    let text = std::fs::read_to_string(scratch.path().join(RESULT)).map_err(Failure::other)?;
    let mut result: Value = serde_json::from_str(&text).map_err(Failure::other)?;
    result["data"] = data.described.into();
    Ok(Ok(result))
}

/// One worker's part. Rank 0 gets the result, where no process waits for it.
///
/// # Errors
/// As [`run`].
pub fn work(
    job: &EvalJob,
    env: &WorkerEnv,
    control: &ControlClient,
    environment: &Environment,
) -> Outcome<Option<Value>> {
    let config = job.config()?;
    let pretrained = match &job.model.checkpoint {
        None => Some(Pretrained::open(&job.model.dir, config.clone())?),
        Some(_) => None,
    };
    let config = pretrained
        .as_ref()
        .map_or(config, |found| found.config.clone());
    let scratch = tempfile::tempdir().map_err(Failure::other)?;
    let built = environment.eval_token_cache.clone();
    let (_, set) = job.data(&config, scratch.path().to_owned(), built)?;
    let strategy = job
        .engine
        .strategy_for(&config, &ModuleTree::new(&config))?;
    let ranks = Ranks::join(env, &job.engine, &Network::default())?;
    let seq = set.rows.seq_length();
    let adapter = match &job.model.checkpoint {
        Some(reader) => SavedAdapter::of(reader.state())?,
        None => None,
    };
    let base = adapter
        .as_ref()
        .map(|adapter| adapter.base(job.model.base.as_deref(), &config))
        .transpose()?;
    let lora = adapter.map(|adapter| (adapter.lora, 0));
    let mut engine = engine(
        &job.engine,
        &config,
        strategy,
        seq,
        &ranks,
        lora.as_ref(),
        Purpose::Evaluation,
    )?;
    if let Some(base) = &base {
        engine.load(base.source()).map_err(Failure::train)?;
    }
    match (&pretrained, &job.model.checkpoint) {
        (Some(weights), _) => engine.load(weights),
        (None, Some(reader)) => engine.load_parameters(reader),
        (None, None) => unreachable!("weights are in a folder or in a checkpoint"),
    }
    .map_err(Failure::train)?;

    let batches = set.batches(job.engine.mesh.dp_size());
    let mut done = 0;
    let result = evaluate(&mut engine, &set, job.model.step(), &mut |_| {
        done += 1;
        control.send(&WorkerEvent::Progress {
            step: done,
            epoch: 0,
            metrics: Metrics::from_iter([("last_step", batches as f64)]),
        });
        Ok(true)
    });
    let result = result.map_err(Failure::train)?;
    // Nobody leaves while another rank may still be reading its memory.
    ranks.barrier()?;
    if env.rank > 0 {
        return Ok(None);
    }
    let result = serde_json::to_value(result).map_err(Failure::other)?;
    match environment.run_dir.as_deref() {
        Some(folder) => {
            write_whole(&PathBuf::from(folder).join(RESULT), &result.to_string())?;
            Ok(None)
        }
        None => Ok(Some(result)),
    }
}

impl EvalJob {
    fn config(&self) -> Outcome<ModelConfig> {
        let config = ModelConfig::from_dir(&self.model.dir).map_err(Failure::other)?;
        let seq_length = self.choice.data.seq_length;
        if seq_length > config.max_position_embeddings {
            return Err(Failure::usage(format!(
                "--seq_length {seq_length} is beyond the model's max_position_embeddings of {}",
                config.max_position_embeddings
            )));
        }
        Ok(config)
    }

    fn data(
        &self,
        config: &ModelConfig,
        cache_dir: PathBuf,
        built: Option<PathBuf>,
    ) -> Outcome<(EvalData, EvalSet)> {
        let hub = Hub::from_env().map_err(Failure::other)?;
        let place = Place {
            model_dir: &self.model.dir,
            config,
            cache_dir: &cache_dir,
            built: built.as_deref(),
        };
        let data = EvalData::prepare(&self.choice, FLAG, &place, &hub, &mut ())?;
        let set = data.set(self.batch_size, self.max_batches, FLAG)?;
        Ok((data, set))
    }
}
