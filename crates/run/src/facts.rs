//! What can be known of a run before there is anything to run: the size of its model, and the memory that it takes.

use std::path::Path;

use tandem_data::{Hub, Weights};
use tandem_model::ModelConfig;
use tandem_trainer::EventSink;

use crate::examples;
use crate::failure::{Failure, Outcome};
use crate::prepare::plan;
use crate::progress::Shown;
use crate::spec::RunSpec;

/// A model, and what each worker needs to train it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The name of its family.
    pub family: String,
    /// Its layers.
    pub num_layers: usize,
    /// Elements of its residual stream.
    pub hidden_size: usize,
    /// Numbers that are trained.
    pub parameters: usize,
    /// The longest row that it is made for.
    pub max_positions: usize,
    /// Bytes that each worker needs.
    pub memory: u64,
    /// Whether there are weights beside its configuration.
    pub has_weights: bool,
}

impl Facts {
    /// Reads the model of `spec`, which may be fetched for it.
    ///
    /// # Errors
    /// The model is not there or not one that can be trained.
    pub fn of(spec: &RunSpec, sink: &mut dyn EventSink) -> Outcome<Self> {
        let hub = Hub::from_env().map_err(Failure::other)?;
        let planned = plan(spec, &hub, None, sink)?;
        let is_weights = |entry: std::fs::DirEntry| {
            let path = entry.path();
            path.extension()
                .is_some_and(|ending| ending == "safetensors")
        };
        // What is on the hub has weights; of those, the configuration alone was fetched.
        let is_local = Path::new(&spec.identity.model_name).is_dir();
        let entries = std::fs::read_dir(&planned.model_dir).map_err(Failure::other)?;
        let has_weights = !is_local || entries.flatten().any(is_weights);
        let config = &planned.config;
        Ok(Self {
            family: config.family.to_owned(),
            num_layers: config.num_layers,
            hidden_size: config.hidden_size,
            parameters: planned.tree.numel(),
            max_positions: config.max_position_embeddings,
            memory: planned.memory.needed(planned.place),
            has_weights,
        })
    }
}

/// The description of a model alone, which may be fetched: a name on the hub or a folder with `config.json`; its first `num_layers`
/// layers, where that is not 0.
///
/// # Errors
/// The model is not there or not one that can be trained.
pub fn model_config(model_name: &str, num_layers: usize) -> Outcome<ModelConfig> {
    let hub = Hub::from_env().map_err(Failure::other)?;
    let folder = hub
        .model_dir(model_name, Weights::NotNeeded, &mut Shown::to(&mut ()))
        .map_err(|error| Failure::other(format!("--model_name: {error}")))?;
    ModelConfig::from_dir(&folder)
        .and_then(|config| config.truncated(num_layers))
        .map_err(Failure::other)
}

/// What the rows of the dataset of `spec` are, by their columns; nothing where the dataset is not on this machine.
///
/// # Errors
/// A local dataset that cannot be read.
pub fn dataset_kind(spec: &RunSpec) -> Outcome<Option<&'static str>> {
    let data = &spec.identity.selection.data;
    let hub = Hub::from_env().map_err(Failure::other)?;
    for dataset in data.datasets() {
        if examples::is_path(&dataset.name) {
            let source = examples::source(data, &dataset.name, &hub.offline(), &mut ())?;
            return Ok(Some(source.kind().name()));
        }
    }
    Ok(None)
}
