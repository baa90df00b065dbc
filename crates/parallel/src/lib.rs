//! How a model is cut over a mesh: tensor parallel plans, flat sharded units, the sharding levels of ZeRO and FSDP, and
//! the optimizer over shards.

mod autotp;
mod buffer_pool;
mod checks;
mod deepspeed;
mod error;
mod flat_unit;
mod fsdp;
mod grad_norm;
mod layout;
mod plan;
mod replicas;
mod sharding;
mod tp_group;
mod tp_slices;
mod weights;

pub use autotp::{AutoTp, AutoTpError};
pub use buffer_pool::BufferPool;
pub use checks::{check_replicas, check_same_batch};
pub use deepspeed::DeepSpeed;
pub use error::ParallelError;
pub use flat_unit::{FlatUnit, OptimizerState, OwnedPiece, UnitSetup};
pub use fsdp::Fsdp;
pub use grad_norm::global_grad_norm;
pub use layout::{LocalParam, UnitLayout, layouts};
pub use plan::{Plan, PlanError, Style};
pub use replicas::Replica;
pub use sharding::{Precision, ShardingLevel, Strategy};
pub use tp_group::{TpGroup, TpTokens};
pub use tp_slices::{TpSlices, TpSlicesError};
pub use weights::{RandomInit, WeightSource};
