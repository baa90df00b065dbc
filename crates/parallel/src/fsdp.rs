//! The FSDP strategy: a declared tensor parallel plan (DTensor's table), parameters sharded per layer.

use tandem_model::ModuleTree;

use crate::plan::Plan;
use crate::sharding::{Precision, ShardingLevel, Strategy};

/// What `train_fsdp` chooses.
#[derive(Debug, Clone)]
pub struct Fsdp {
    /// fp32, bf16 or autocast, with its reduce kind.
    pub precision: Precision,
    /// As in FSDP2's `fully_shard`.
    pub reshard_after_forward: bool,
}

impl Fsdp {
    /// The strategy for the model `tree`.
    pub fn strategy(&self, tree: &ModuleTree) -> Strategy {
        Strategy {
            name: "fsdp",
            plan: Plan::declared(tree),
            level: ShardingLevel::Parameters,
            precision: self.precision,
            reshard_after_forward: self.reshard_after_forward,
        }
    }
}
