//! The DeepSpeed strategy: an inferred tensor parallel plan (AutoTP) with ZeRO stage 0, 1 or 2.

use tandem_model::ModuleTree;

use crate::autotp::{AutoTp, AutoTpError};
use crate::sharding::{Precision, ShardingLevel, Strategy};

/// What `train_deepspeed` chooses.
#[derive(Debug, Clone)]
pub struct DeepSpeed {
    /// 0, 1 or 2.
    pub zero_stage: ShardingLevel,
    /// How the plan is inferred.
    pub autotp: AutoTp,
    /// fp32 or bf16.
    pub precision: Precision,
}

impl DeepSpeed {
    /// # Errors
    /// When an AutoTP override matches no module.
    pub fn strategy(&self, tree: &ModuleTree) -> Result<Strategy, AutoTpError> {
        Ok(Strategy {
            name: "deepspeed",
            plan: self.autotp.infer(tree)?,
            level: self.zero_stage,
            precision: self.precision,
            reshard_after_forward: false,
        })
    }
}
