//! The parts of a model's description.

use tandem_tensor::Kind;
use tandem_tensor::experts::Rule;

/// What the features of a module run over. Whoever cuts a model cuts along these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Query heads.
    QHeads,
    /// Key/value heads.
    KvHeads,
    /// Columns of the MLP.
    Intermediate,
    /// Columns of an expert of a mixture.
    ExpertIntermediate,
    /// Vocabulary entries.
    Vocab,
}

/// A linear layer of a block, by Hugging Face's name, and what its outputs are: one thing, or several side by side where a
/// family keeps them in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projection {
    /// In its block, such as `q_proj`.
    pub name: &'static str,
    /// From the first row of the weight to the last.
    pub outputs: &'static [Axis],
}

/// A tensor for each of q, k and v.
pub(super) const Q_K_V: &[Projection] = &[
    Projection {
        name: "q_proj",
        outputs: &[Axis::QHeads],
    },
    Projection {
        name: "k_proj",
        outputs: &[Axis::KvHeads],
    },
    Projection {
        name: "v_proj",
        outputs: &[Axis::KvHeads],
    },
];

/// One tensor for q, k and v.
pub(super) const QKV: &[Projection] = &[Projection {
    name: "qkv_proj",
    outputs: &[Axis::QHeads, Axis::KvHeads, Axis::KvHeads],
}];

/// A tensor for each of the MLP's branches.
pub(super) const GATE_AND_UP: &[Projection] = &[
    Projection {
        name: "gate_proj",
        outputs: &[Axis::Intermediate],
    },
    Projection {
        name: "up_proj",
        outputs: &[Axis::Intermediate],
    },
];

/// One tensor for both branches.
pub(super) const GATE_UP: &[Projection] = &[Projection {
    name: "gate_up_proj",
    outputs: &[Axis::Intermediate, Axis::Intermediate],
}];

/// A mixture of experts in the place of an MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// How many there are, and how the router chooses.
    pub rule: Rule,
    /// Width of each.
    pub intermediate_size: usize,
    /// What its modules are called.
    pub names: ExpertNames,
    /// The coefficient of the loss that keeps experts in balance, where it is on.
    pub balance: Option<f64>,
    /// Per layer: whether it is a mixture.
    pub sparse: Vec<bool>,
}

/// Hugging Face's names of a mixture's modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// The block in its layer.
    pub block: &'static str,
    /// The router in the block.
    pub router: &'static str,
    /// In each expert, the projections whose outputs are its gate and up branches.
    pub gate_up: &'static [Projection],
    /// In each expert, the projection that returns.
    pub down: &'static str,
}

impl ExpertNames {
    /// As in a dense MLP.
    pub(super) const LIKE_AN_MLP: Self = Self {
        block: "mlp",
        router: "gate",
        gate_up: &[
            Projection {
                name: "gate_proj",
                outputs: &[Axis::ExpertIntermediate],
            },
            Projection {
                name: "up_proj",
                outputs: &[Axis::ExpertIntermediate],
            },
        ],
        down: "down_proj",
    };

    /// As Mixtral has them.
    pub(super) const MIXTRAL: Self = Self {
        block: "block_sparse_moe",
        router: "gate",
        gate_up: &[
            Projection {
                name: "w1",
                outputs: &[Axis::ExpertIntermediate],
            },
            Projection {
                name: "w3",
                outputs: &[Axis::ExpertIntermediate],
            },
        ],
        down: "w2",
    };
}

/// The norms of a layer, by Hugging Face's names. One before a block is of what the block reads; one after it is of what the
/// block adds to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerNorms {
    /// Before the attention.
    pub before_attention: Option<&'static str>,
    /// After the attention, on its branch.
    pub after_attention: Option<&'static str>,
    /// Before the MLP.
    pub before_mlp: Option<&'static str>,
    /// After the MLP, on its branch.
    pub after_mlp: Option<&'static str>,
}

impl LayerNorms {
    /// As Llama has them.
    pub(super) const BEFORE: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    };

    /// As OLMo 2 has them.
    pub(super) const AFTER: Self = Self {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    };

    /// As Gemma 2 has them.
    pub(super) const BOTH: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    };

    /// The names of those that there are.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        [
            self.before_attention,
            self.after_attention,
            self.before_mlp,
            self.after_mlp,
        ]
        .into_iter()
        .flatten()
    }
}

/// What q and k are normalised over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head for itself, all with one weight.
    PerHead,
    /// All heads together, each feature with a weight of its own.
    AcrossHeads,
}

/// What multiplies the vectors of the embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingScale {
    /// 1 leaves them as they are.
    pub factor: f64,
    /// The factor is rounded to the kind of the table first.
    pub rounds: bool,
}

impl EmbeddingScale {
    /// None.
    pub(super) const ONE: Self = Self {
        factor: 1.0,
        rounds: false,
    };

    /// The factor for a table of kind `table`.
    pub fn for_table(self, table: Kind) -> f64 {
        match (self.rounds, table) {
            (true, Kind::BFloat16) => f64::from(nearest_bf16(self.factor as f32)),
            _ => self.factor,
        }
    }
}

/// The upper half of the bits, to the nearest and of two equally near ones to the even.
fn nearest_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits + 0x7fff + (bits >> 16 & 1);
    f32::from_bits(rounded & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The square roots that Gemma's models multiply with.
    #[test]
    fn a_rounded_scale_is_what_bf16_holds() {
        let scale = |size: f64| EmbeddingScale {
            factor: size.sqrt(),
            rounds: true,
        };
        for (size, bf16) in [
            (2304.0, 48.0),
            (3584.0, 59.75),
            (1152.0, 34.0),
            (5376.0, 73.5),
        ] {
            assert_eq!(scale(size).for_table(Kind::BFloat16), bf16, "{size}");
            assert_eq!(scale(size).for_table(Kind::Float), size.sqrt());
        }
        let exact = EmbeddingScale {
            factor: 59.866,
            rounds: false,
        };
        assert_eq!(exact.for_table(Kind::BFloat16), 59.866);
    }
}
