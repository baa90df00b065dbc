//! What a run needs before ranks meet: model, data and memory, checked by whoever starts it, so that what is wrong is
//! said once and before anything is started.

use std::path::PathBuf;

use tandem_data::{
    DatasetOptions, EpochLimit, Loader, LoaderOptions, Progress, Sampler, TokenDataset, Tokenizer,
    hub,
};
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{Strategy, TpSlices, UnitLayout, layouts};
use tandem_tensor::memory;
use tandem_trainer::{Event, EventSink, MemoryEstimate, estimate_memory};

use crate::failure::{Failure, Outcome};
use crate::request::Request;

/// Rows of the head whose logits exist at the same time.
pub const HEAD_CHUNK_ROWS: usize = 512;

/// A model and data that fit together.
pub struct Prepared {
    /// Folder of the model.
    pub model_dir: PathBuf,
    /// The model.
    pub config: ModelConfig,
    /// Its modules.
    pub tree: ModuleTree,
    /// How it is cut.
    pub strategy: Strategy,
    /// The tokens.
    pub dataset: TokenDataset,
    /// Which of them when.
    pub sampler: Sampler,
    /// Optimizer steps of the run.
    pub total_steps: u64,
    /// What each rank will need.
    pub memory: MemoryEstimate,
    /// Units of tp_rank 0, for sizes.
    pub layouts: Vec<UnitLayout>,
}
