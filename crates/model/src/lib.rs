//! The decoder family (Llama, Mistral, Qwen2, Qwen3): what a Hugging Face config means, which parameters there
//! are, and every module as an explicit forward and backward.
//!
//! The modules compute whatever slice of the model their dimensions describe. They know no mesh and no process
//! group; where the partial results of a sharded layer must be joined they call the [`TpContext`] they are given.

pub mod config;
mod embedding;
mod error;
mod head;
mod layer;
mod parameters;
mod rope_table;
mod tensors;
mod tp_context;

pub use config::{ConfigError, ModelConfig};
pub use embedding::Embedding;
pub use error::ModelError;
pub use head::{Head, HeadOutput};
pub use layer::{DecoderLayer, LayerSaved, Recompute};
pub use parameters::{Init, Module, ModuleKind, ModuleTree, ParamSpec, UnitTree};
pub use rope_table::RopeTable;
pub use tensors::{HeadTensors, LayerDims, LayerTensors};
pub use tp_context::{PendingTensor, SingleRank, TpContext, TpError};
