//! Flags with a few values: their names, and what they are in a spec.

use clap::ValueEnum;
use tandem_checkpoint::ScoreOrder;
use tandem_comm::Transport;
use tandem_model::Recompute;
use tandem_run::spec;
use tandem_run::spec::ExampleKind;
use tandem_trainer::{WarmupType, WeightDecayOn};

/// Declares a flag's values, each with the value of the spec that it stands for.
macro_rules! choices {
    ($(#[$about:meta])* $name:ident => $target:ty { $($(#[$doc:meta])* $value:ident => $meaning:path,)+ }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
        $(#[$about])*
        pub enum $name {
            $($(#[$doc])* $value,)+
        }

        impl From<$name> for $target {
            fn from(choice: $name) -> Self {
                match choice {
                    $($name::$value => $meaning,)+
                }
            }
        }
    };
}

choices! {
    /// fp32 or bf16.
    Dtype => spec::Dtype {
        /// 32-bit floating point.
        Fp32 => spec::Dtype::Fp32,
        /// bfloat16.
        Bf16 => spec::Dtype::Bf16,
    }
}

choices! {
    /// What is computed again in backward.
    RecomputeChoice => Recompute {
        /// Nothing: the most memory.
        None => Recompute::None,
        /// The outputs of the norms and the product of the MLP's two branches: next to no time.
        Light => Recompute::Light,
        /// Whole layers from their inputs: the least memory, for a second forward of each layer.
        Full => Recompute::Full,
    }
}

choices! {
    /// Where initial weights come from.
    InitChoice => spec::Init {
        /// The model's safetensors.
        Pretrained => spec::Init::Pretrained,
        /// New ones that depend on the seed only.
        Random => spec::Init::Random,
    }
}

choices! {
    /// How the learning rate rises.
    WarmupChoice => WarmupType {
        /// With the logarithm of the step.
        Log => WarmupType::Log,
        /// In a straight line.
        Linear => WarmupType::Linear,
    }
}

choices! {
    /// What decays.
    DecayChoice => WeightDecayOn {
        /// All parameters.
        All => WeightDecayOn::All,
        /// Those of two dimensions or more: norms and biases do not.
        Matrices => WeightDecayOn::Matrices,
    }
}

choices! {
    /// What is better.
    Order => ScoreOrder {
        /// Much.
        Max => ScoreOrder::Max,
        /// Little.
        Min => ScoreOrder::Min,
    }
}

choices! {
    /// How ranks move data.
    TransportChoice => Transport {
        /// NCCL between GPUs; on CPUs, shared memory where the members of a group can share it, otherwise TCP.
        Auto => Transport::Auto,
        /// Shared memory, or an error.
        Shm => Transport::Shm,
        /// TCP, also within a host.
        Tcp => Transport::Tcp,
        /// From the device into host memory, from there as with auto, and back. Ranks may share a GPU.
        Staged => Transport::Staged,
    }
}

choices! {
    /// How Ray spreads workers over nodes.
    #[value(rename_all = "SCREAMING_SNAKE_CASE")]
    PlacementStrategy => spec::PlacementStrategy {
        /// On few nodes.
        Pack => spec::PlacementStrategy::Pack,
        /// On many nodes.
        Spread => spec::PlacementStrategy::Spread,
        /// On one node, or not at all.
        StrictPack => spec::PlacementStrategy::StrictPack,
        /// Each on a node of its own, or not at all.
        StrictSpread => spec::PlacementStrategy::StrictSpread,
    }
}

/// What is looked at before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckChoice {
    /// All that the run needs.
    All,
    /// The flags.
    Flags,
}

choices! {
    /// How documents are packed.
    #[value(rename_all = "snake_case")]
    PackingStrategy => spec::Packing {
        /// All documents are one stream, cut into full rows: also within documents.
        Wrapped => spec::Packing::Wrapped,
        /// Best-fit decreasing: whole documents, as many as a row has room for; what is longer than a row is truncated.
        Bfd => spec::Packing::BestFit,
        /// The same, but what is longer than a row is split into several pieces.
        BfdSplit => spec::Packing::BestFitSplit,
    }
}

/// What the rows of a dataset are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum DatasetFormat {
    /// What the names of the columns tell.
    Auto,
    /// A column of text.
    Text,
    /// `messages` (role, content) or `conversations` (from, value), with `tools` where there is such a column.
    Messages,
    /// `prompt` and `completion`: text, or lists of messages.
    PromptCompletion,
}

impl From<DatasetFormat> for Option<ExampleKind> {
    fn from(choice: DatasetFormat) -> Self {
        match choice {
            DatasetFormat::Auto => None,
            DatasetFormat::Text => Some(ExampleKind::Text),
            DatasetFormat::Messages => Some(ExampleKind::Messages),
            DatasetFormat::PromptCompletion => Some(ExampleKind::PromptCompletion),
        }
    }
}
