//! The sharding levels: one mechanism with four points, from plain data parallelism to FSDP.

use tandem_tensor::Kind;

use crate::buffer_pool::buffer_capacity;
use crate::layout::UnitLayout;
use crate::plan::Plan;

/// What is cut over the data parallel group (ZeRO, arXiv 1910.02054).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShardingLevel {
    /// Nothing: ZeRO-0, plain data parallelism.
    Replicated,
    /// Optimizer states: ZeRO-1.
    Optimizer,
    /// And gradients: ZeRO-2.
    Gradients,
    /// And parameters: FSDP (ZeRO-3).
    Parameters,
}

impl ShardingLevel {
    /// The level of each unit. A unit like no other (an embedding that is also the head) would have the buffers that it is
    /// gathered and reduced in to itself, and its shards besides. It keeps them and has no shards: that is less memory, and
    /// with several micro-batches less to send.
    ///
    /// The whole unit's size decides, not its local one: all ranks of the mesh agree.
    pub fn of_units(self, layouts: &[UnitLayout]) -> Vec<Self> {
        let buffers: Vec<usize> = layouts
            .iter()
            .map(|unit| buffer_capacity(unit.whole))
            .collect();
        let is_alone = |buffer| buffers.iter().filter(|it| *it == buffer).count() == 1;
        let level = |buffer| match is_alone(buffer) {
            true => self.min(Self::Optimizer),
            false => self,
        };
        buffers.iter().map(level).collect()
    }
}

/// Which kind of number is used where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Parameters as they are stored for computing, and gathered.
    pub param: Kind,
    /// Matrix products and what they produce.
    pub matmul: Kind,
    /// The residual stream.
    pub residual: Kind,
    /// Gradients on the wire; they are accumulated in fp32 always.
    pub reduce: Kind,
}

impl Precision {
    /// Everything in fp32.
    pub fn fp32() -> Self {
        Self::uniform(Kind::Float)
    }

    /// bf16 computing over fp32 master weights.
    pub fn bf16() -> Self {
        Self::uniform(Kind::BFloat16)
    }

    /// As `torch.autocast`: fp32 parameters, residual stream, norms and loss; bf16 matrix products.
    pub fn autocast() -> Self {
        Self {
            matmul: Kind::BFloat16,
            ..Self::fp32()
        }
    }

    /// The same for a model that is not trained: it is kept as it computes.
    #[must_use]
    pub fn frozen(self) -> Self {
        Self {
            param: self.matmul,
            ..self
        }
    }

    fn uniform(kind: Kind) -> Self {
        Self {
            param: kind,
            matmul: kind,
            residual: kind,
            reduce: Kind::Float,
        }
    }
}

/// What distinguishes the two entry points, decided once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strategy {
    /// `deepspeed` or `fsdp`.
    pub name: &'static str,
    /// The tensor parallel plan.
    pub plan: Plan,
    /// What is cut over the data parallel group.
    pub level: ShardingLevel,
    /// Kinds of numbers.
    pub precision: Precision,
    /// Free a layer's gathered parameters after forward and gather them again for backward.
    pub reshard_after_forward: bool,
}
