//! How model and states are cut over the ranks, as asked for.

use serde::Serialize;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{self as parallel, AutoTp, AutoTpError, Precision, ShardingLevel};
use tandem_tensor::Kind;

use super::EngineSpec;
use crate::failure::{Failure, Outcome};

/// One of the two strategies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Strategy {
    /// An inferred plan and ZeRO: `train_deepspeed`.
    DeepSpeed(DeepSpeed),
    /// A declared plan and sharded parameters: `train_fsdp`.
    Fsdp(Fsdp),
}

/// Settings that only `train_deepspeed` has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeepSpeed {
    /// 0, 1 or 2.
    pub zero_stage: u8,
    /// Corrections of the inferred plan, `REGEX=STYLE`.
    pub autotp_override: Vec<String>,
}

/// Settings that only `train_fsdp` has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fsdp {
    /// Keep parameters in fp32 and run matrix products in bf16.
    pub autocast: bool,
    /// Free gathered parameters after forward.
    pub reshard_after_forward: bool,
    /// Kind of the gradients on the wire.
    pub reduce_dtype: Dtype,
}

/// fp32 or bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floating point.
    Fp32,
    /// bfloat16.
    Bf16,
}

impl Strategy {
    /// The program of this strategy.
    pub fn entry_point(&self) -> &'static str {
        match self {
            Self::DeepSpeed(_) => "train_deepspeed",
            Self::Fsdp(_) => "train_fsdp",
        }
    }

    /// Names the strategy for checkpoints: `deepspeed` or `fsdp`, and the ZeRO stage.
    pub fn name(&self) -> (&'static str, Option<u8>) {
        match self {
            Self::DeepSpeed(own) => ("deepspeed", Some(own.zero_stage)),
            Self::Fsdp(_) => ("fsdp", None),
        }
    }

    /// Refuses settings that contradict each other, whatever the model is.
    pub fn check(&self, dtype: Dtype) -> Outcome<()> {
        match self {
            Self::DeepSpeed(own) => {
                zero_level(own.zero_stage)?;
                own.autotp().map(drop)
            }
            Self::Fsdp(own) if own.autocast && dtype == Dtype::Fp32 => Err(Failure::usage(
                "--autocast runs matrix products in bf16, but --dtype is fp32; pass --dtype bf16, or leave --autocast out",
            )),
            Self::Fsdp(_) => Ok(()),
        }
    }

    /// The strategy for a model.
    pub fn for_model(&self, dtype: Dtype, tree: &ModuleTree) -> Outcome<parallel::Strategy> {
        let precision = match dtype {
            Dtype::Fp32 => Precision::fp32(),
            Dtype::Bf16 => Precision::bf16(),
        };
        match self {
            Self::DeepSpeed(own) => {
                let strategy = parallel::DeepSpeed {
                    zero_stage: zero_level(own.zero_stage)?,
                    autotp: own.autotp()?,
                    precision,
                }
                .strategy(tree)
                .map_err(bad_override)?;
                strategy
                    .plan
                    .check(tree)
                    .map_err(|error| Failure::usage(error.to_string()))?;
                Ok(strategy)
            }
            Self::Fsdp(own) => {
                let mut precision = if own.autocast {
                    Precision::autocast()
                } else {
                    precision
                };
                precision.reduce = match own.reduce_dtype {
                    Dtype::Fp32 => Kind::Float,
                    Dtype::Bf16 => Kind::BFloat16,
                };
                Ok(parallel::Fsdp {
                    precision,
                    reshard_after_forward: own.reshard_after_forward,
                }
                .strategy(tree))
            }
        }
    }
}

impl EngineSpec {
    /// Refuses experts that cannot be spread over the mesh, whatever the model is.
    pub fn check_expert_groups(&self) -> Outcome<()> {
        let checked = self.mesh.check_expert_groups(self.expert_parallel_size);
        checked.map_err(|error| Failure::usage(error.to_string()))
    }

    /// The strategy for the model that `config` describes and `tree` lists.
    ///
    /// # Errors
    /// Wrong usage: what this model cannot be cut like.
    pub fn strategy_for(
        &self,
        config: &ModelConfig,
        tree: &ModuleTree,
    ) -> Outcome<parallel::Strategy> {
        let strategy = self.strategy.for_model(self.dtype, tree)?;
        let size = self.expert_parallel_size;
        let plan = strategy.plan.with_spread_experts(config, tree, size);
        Ok(parallel::Strategy {
            plan: plan.map_err(|error| Failure::usage(error.to_string()))?,
            ..strategy
        })
    }
}

impl DeepSpeed {
    fn autotp(&self) -> Outcome<AutoTp> {
        AutoTp::with_overrides(&self.autotp_override).map_err(bad_override)
    }
}

fn bad_override(error: AutoTpError) -> Failure {
    Failure::usage(format!("--autotp_override: {error}"))
}

/// The sharding level of a ZeRO stage.
fn zero_level(stage: u8) -> Outcome<ShardingLevel> {
    match stage {
        0 => Ok(ShardingLevel::Replicated),
        1 => Ok(ShardingLevel::Optimizer),
        2 => Ok(ShardingLevel::Gradients),
        3 => Err(Failure::usage(
            "--zero_stage 3 shards parameters: that is train_fsdp; or use --zero_stage 0, 1 or 2",
        )),
        other => Err(Failure::usage(format!(
            "--zero_stage is {other}; use 0, 1 or 2"
        ))),
    }
}
