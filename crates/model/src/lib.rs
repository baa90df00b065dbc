//! Decoders with RMS norms, rotary positions and gated MLPs: what a Hugging Face config of any such family means, which
//! parameters there are, and every module as an explicit forward and backward.
//!
//! The modules compute whatever slice of the model their dimensions describe. They know no mesh and no process
//! group; where the partial results of a sharded layer must be joined they call the [`TpContext`] they are given.
//!
//! ```
//! use serde_json::json;
//! use tandem_model::{Embedding, ModelConfig, ModuleTree, SingleRank};
//! use tandem_tensor::{Device, Kind, Tensor};
//!
//! let json = json!({
//!     "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8,
//!     "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20,
//!     "max_position_embeddings": 64, "tie_word_embeddings": true,
//! });
//! let config = ModelConfig::from_json(json.as_object().ok_or("no object")?)?;
//! let tree = ModuleTree::new(&config);
//! let names: Vec<&str> = tree.units.iter().map(|unit| unit.name.as_str()).collect();
//! assert_eq!(names, ["embed", "layer 0", "layer 1"]);
//! assert_eq!(tree.units[0].parameters[0].name, "model.embed_tokens.weight");
//!
//! // A module: forward, and backward from the gradient of what it gave. One rank has the whole of it.
//! let embedding = Embedding { vocab: 0..20, residual: Kind::Float, scale: 1.0 };
//! let table = Tensor::ones([20, 8], (Kind::Float, Device::Cpu));
//! let ids = Tensor::from_slice(&[3i64, 1, 3]);
//! let x = embedding.forward(&table, &ids, &SingleRank)?;
//! assert_eq!(x.size(), [3, 8]);
//! let d_table = table.zeros_like();
//! embedding.backward(&d_table, &x, &ids, &SingleRank)?;
//! assert_eq!(d_table.get(3).get(0).double_value(), 2.0, "the token 3 is there twice");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod carve;
pub mod config;
mod embedding;
mod error;
mod expert_peers;
mod head;
mod layer;
pub mod lora;
mod parameters;
mod pending_tensor;
mod rope_table;
mod tensors;
mod tp_context;

pub use adapter::{AdapterDims, AdapterTensors, DropoutRows, adapted_module};
pub use config::{ConfigError, ModelConfig};
pub use embedding::Embedding;
pub use error::{ModelError, TpError};
pub use expert_peers::ExpertPeers;
pub use head::{Head, HeadOutput};
pub use layer::{DecoderLayer, Gradients, LayerAccumulate, LayerSaved, Recompute, TokenFacts};
pub use parameters::{Cut, Init, Module, ModuleKind, ModuleTree, ParamSpec, UnitTree};
pub use pending_tensor::PendingTensor;
pub use rope_table::RopeTable;
pub use tensors::{
    DenseTensors, ExpertsDims, ExpertsTensors, HeadTensors, LayerDims, LayerTensors, MlpTensors,
    QkNormDims, WholeBlocks,
};
pub use tp_context::{SingleRank, TpContext};
