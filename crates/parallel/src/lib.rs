//! How a model is cut over a mesh: tensor parallel plans, flat sharded units, the sharding levels of ZeRO and FSDP, and
//! the optimizer over shards.
//!
//! ```
//! use serde_json::json;
//! use tandem_model::{ModelConfig, ModuleTree};
//! use tandem_parallel::{AutoTp, Fsdp, Precision, Style, TpSlices, layouts};
//!
//! let json = json!({
//!     "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8,
//!     "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 16,
//!     "vocab_size": 20, "max_position_embeddings": 64,
//! });
//! let config = ModelConfig::from_json(json.as_object().ok_or("no object")?)?;
//! let tree = ModuleTree::new(&config);
//!
//! // The plan: which modules are cut how. The one that is declared is the one that DeepSpeed's rule infers.
//! let fsdp = Fsdp { precision: Precision::bf16(), reshard_after_forward: true };
//! let plan = fsdp.strategy(&tree).plan;
//! assert_eq!(plan.styles["model.layers.0.self_attn.o_proj"], Style::Rowwise);
//! assert_eq!(plan, AutoTp::default().infer(&tree)?);
//!
//! // What the first of two ranks in a row holds of layer 0: half of each matrix, and both norms.
//! let slices = TpSlices::new(&config, 2)?;
//! let layer = &layouts(&config, &tree, &plan, &slices, (0, 0), false)[1];
//! let whole: usize = tree.units[1].parameters.iter().map(|it| it.numel()).sum();
//! assert_eq!(layer.numel, (whole - 2 * 8) / 2 + 2 * 8);
//! assert_eq!(layer.replicas.len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod autotp;
mod buffer_pool;
mod checks;
mod deepspeed;
mod error;
mod expert_group;
mod flat_unit;
mod fsdp;
mod grad_norm;
mod layout;
mod pending;
mod plan;
mod replicas;
mod sharding;
mod tp_group;
mod tp_slices;
mod weight_decay;
mod weights;

pub use autotp::{AutoTp, AutoTpError};
pub use buffer_pool::{BufferPool, buffer_capacity};
pub use checks::{check_replicas, check_same_batch, compare_batches, gather_batches};
pub use deepspeed::DeepSpeed;
pub use error::ParallelError;
pub use expert_group::ExpertGroup;
pub use flat_unit::{FlatUnit, OWNED_ALIGN, OptimizerState, OwnedPiece, UnitSetup};
pub use fsdp::Fsdp;
pub use grad_norm::{global_squared_norm, own_gradient_is_finite};
pub use layout::{LocalParam, UnitLayout, layouts};
pub use plan::{Plan, PlanError, Style};
pub use replicas::Replica;
pub use sharding::{Precision, ShardingLevel, Strategy};
pub use tp_group::{TpGroup, TpTokens};
pub use tp_slices::{TpSlices, TpSlicesError};
pub use weight_decay::WeightDecayOn;
pub use weights::{RandomInit, WeightSource};
