//! Views of one flat buffer as the matrices that a unit computes with.
//!
//! The same views serve weights and gradients. The order is that of [`crate::parameters`]; a test holds the two
//! together.

use std::ops::Range;

use tandem_tensor::Tensor;
use tandem_tensor::experts::Rule;

use crate::adapter::AdapterTensors;
use crate::carve::Carve;
use crate::config::{Axis, LayerNorms, ModelConfig, QkNorm};

/// The slice of a layer that this rank computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDims {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Query heads here.
    pub q_heads: usize,
    /// Key/value heads here.
    pub kv_heads: usize,
    /// For each query head the key/value head (both local) that it reads; `None` where every key/value head serves the
    /// same number of neighbouring query heads, which the kernels know by themselves.
    pub kv_of_q: Option<Vec<i64>>,
    /// Columns of the MLP here.
    pub intermediate: usize,
    /// Which optional tensors there are.
    pub qkv_bias: bool,
    /// As in [`ModelConfig`].
    pub o_bias: bool,
    /// As in [`ModelConfig`].
    pub mlp_bias: bool,
    /// As in [`ModelConfig`].
    pub layer_norms: LayerNorms,
    /// How q and k are normalised.
    pub qk_norm: Option<QkNormDims>,
    /// The mixture of experts that is in the place of the MLP.
    pub experts: Option<ExpertsDims>,
}

/// The slice of a mixture of experts that this rank computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsDims {
    /// All experts, and how the router chooses.
    pub rule: Rule,
    /// Experts here: all, or this rank's where they are spread over ranks.
    pub here: usize,
    /// Columns of each expert here.
    pub intermediate: usize,
}

impl ExpertsDims {
    /// Whether experts are spread over ranks, each whole on one of them.
    pub fn is_spread(&self) -> bool {
        self.here < self.rule.experts
    }
}

/// The blocks of a layer that every rank of a row computes whole, instead of a slice of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WholeBlocks {
    /// The attention.
    pub attention: bool,
    /// The MLP.
    pub mlp: bool,
}

/// How this rank's q and k are normalised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QkNormDims {
    /// Each head for itself.
    PerHead,
    /// All heads of all ranks together.
    AcrossHeads {
        /// Features of q on all ranks.
        q_features: usize,
        /// Features of k on all ranks.
        k_features: usize,
        /// Of the key/value heads here, those that no rank before this one has.
        counted_kv: Range<usize>,
    },
}

impl LayerDims {
    /// Whether it has experts that are spread over ranks.
    pub fn spreads_experts(&self) -> bool {
        self.experts.is_some_and(|experts| experts.is_spread())
    }

    /// The whole of layer `index`.
    pub fn whole(config: &ModelConfig, index: usize) -> Self {
        Self {
            hidden: config.hidden_size,
            head_dim: config.head_dim,
            q_heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            kv_of_q: None,
            intermediate: config.intermediate_size,
            qkv_bias: config.qkv_bias,
            o_bias: config.o_bias,
            mlp_bias: config.mlp_bias,
            layer_norms: config.layer_norms,
            experts: config.experts_of(index).map(|experts| ExpertsDims {
                rule: experts.rule,
                here: experts.rule.experts,
                intermediate: experts.intermediate_size,
            }),
            qk_norm: config.qk_norm.map(|kind| match kind {
                QkNorm::PerHead => QkNormDims::PerHead,
                QkNorm::AcrossHeads => QkNormDims::AcrossHeads {
                    q_features: config.num_heads * config.head_dim,
                    k_features: config.num_kv_heads * config.head_dim,
                    counted_kv: 0..config.num_kv_heads,
                },
            }),
        }
    }

    /// The same slice of layer `index`, with the blocks of `blocks` whole.
    #[must_use]
    pub fn with_whole(self, config: &ModelConfig, index: usize, blocks: WholeBlocks) -> Self {
        let whole = Self::whole(config, index);
        let mut dims = self;
        if blocks.attention {
            dims = Self {
                intermediate: dims.intermediate,
                experts: dims.experts,
                ..whole.clone()
            };
        }
        if blocks.mlp {
            dims.intermediate = whole.intermediate;
        }
        dims
    }

    /// Weights of the norms of q and k, where they have norms.
    fn qk_norm_sizes(&self) -> Option<(usize, usize)> {
        let (q, kv) = match self.qk_norm.as_ref()? {
            QkNormDims::PerHead => (1, 1),
            QkNormDims::AcrossHeads { .. } => (self.q_heads, self.kv_heads),
        };
        Some((q * self.head_dim, kv * self.head_dim))
    }

    /// Elements of this rank along `axis` of a dense layer.
    pub fn width(&self, axis: Axis) -> usize {
        match axis {
            Axis::QHeads => self.q_heads * self.head_dim,
            Axis::KvHeads => self.kv_heads * self.head_dim,
            Axis::Intermediate => self.intermediate,
            Axis::ExpertIntermediate | Axis::Vocab => 0,
        }
    }

    /// Width of the fused q|k|v projection.
    pub fn qkv_width(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// A decoder layer's tensors; `[out, in]` matrices.
#[derive(Debug)]
pub struct LayerTensors {
    /// `[hidden]`
    pub norm_before_attention: Option<Tensor>,
    /// `[qkv_width, hidden]`
    pub qkv_weight: Tensor,
    /// `[qkv_width]`
    pub qkv_bias: Option<Tensor>,
    /// `[head_dim]`, or `[q_heads * head_dim]` where it is across heads.
    pub q_norm: Option<Tensor>,
    /// `[head_dim]`, or `[kv_heads * head_dim]` where it is across heads.
    pub k_norm: Option<Tensor>,
    /// `[hidden, q_heads * head_dim]`
    pub o_weight: Tensor,
    /// `[hidden]`
    pub o_bias: Option<Tensor>,
    /// `[hidden]`
    pub norm_after_attention: Option<Tensor>,
    /// `[hidden]`
    pub norm_before_mlp: Option<Tensor>,
    /// The MLP, or what is in its place.
    pub mlp: MlpTensors,
    /// `[hidden]`
    pub norm_after_mlp: Option<Tensor>,
    /// What adapts the matrices, which are then frozen. It is no part of the layer's buffer.
    pub adapter: Option<AdapterTensors>,
}

/// The tensors of the second block of a layer.
#[derive(Debug)]
pub enum MlpTensors {
    /// A gated MLP.
    Dense(DenseTensors),
    /// A mixture of experts.
    Experts(ExpertsTensors),
}

impl MlpTensors {
    /// What is added after the sum over the row, where there is something.
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(dense) => dense.down_bias.as_ref(),
            Self::Experts(_) => None,
        }
    }

    pub(crate) fn dense(&self) -> Option<&DenseTensors> {
        match self {
            Self::Dense(dense) => Some(dense),
            Self::Experts(_) => None,
        }
    }

    pub(crate) fn experts(&self) -> Option<&ExpertsTensors> {
        match self {
            Self::Dense(_) => None,
            Self::Experts(experts) => Some(experts),
        }
    }
}

/// The tensors of a gated MLP; `[out, in]` matrices.
#[derive(Debug)]
pub struct DenseTensors {
    /// `[2 * intermediate, hidden]`
    pub gate_up_weight: Tensor,
    /// `[2 * intermediate]`
    pub gate_up_bias: Option<Tensor>,
    /// `[hidden, intermediate]`
    pub down_weight: Tensor,
    /// `[hidden]`
    pub down_bias: Option<Tensor>,
}

impl LayerTensors {
    /// Views of a layer's flat buffer, or `None` when its length is not that of `dims`.
    pub fn view(flat: &Tensor, dims: &LayerDims) -> Option<Self> {
        Self::view_both(flat, None, dims)
    }

    /// The same, with the experts in a buffer of their own where they are spread over ranks.
    pub fn view_both(flat: &Tensor, experts: Option<&Tensor>, dims: &LayerDims) -> Option<Self> {
        let mut carve = Carve::new(flat);
        let mut apart = experts.map(Carve::new);
        let (hidden, qkv) = (dims.hidden, dims.qkv_width());
        let q_width = dims.q_heads * dims.head_dim;
        let norms = &dims.layer_norms;
        let has_qk_norm = dims.qk_norm.is_some();
        let (q_norm, k_norm) = dims.qk_norm_sizes().unwrap_or_default();
        let tensors = Self {
            norm_before_attention: carve.optional(norms.before_attention.is_some(), hidden)?,
            qkv_weight: carve.matrix(qkv, hidden)?,
            qkv_bias: carve.optional(dims.qkv_bias, qkv)?,
            q_norm: carve.optional(has_qk_norm, q_norm)?,
            k_norm: carve.optional(has_qk_norm, k_norm)?,
            o_weight: carve.matrix(hidden, q_width)?,
            o_bias: carve.optional(dims.o_bias, hidden)?,
            norm_after_attention: carve.optional(norms.after_attention.is_some(), hidden)?,
            norm_before_mlp: carve.optional(norms.before_mlp.is_some(), hidden)?,
            mlp: match &dims.experts {
                Some(dims) => {
                    let router = carve.matrix(dims.rule.experts, hidden)?;
                    let carve = apart.as_mut().unwrap_or(&mut carve);
                    MlpTensors::Experts(self::experts(router, carve, dims, hidden)?)
                }
                None => MlpTensors::Dense(DenseTensors {
                    gate_up_weight: carve.matrix(2 * dims.intermediate, hidden)?,
                    gate_up_bias: carve.optional(dims.mlp_bias, 2 * dims.intermediate)?,
                    down_weight: carve.matrix(hidden, dims.intermediate)?,
                    down_bias: carve.optional(dims.mlp_bias, hidden)?,
                }),
            },
            norm_after_mlp: carve.optional(norms.after_mlp.is_some(), hidden)?,
            adapter: None,
        };
        let is_done = carve.is_done() && apart.is_none_or(|apart| apart.is_done());
        is_done.then_some(tensors)
    }
}

/// The tensors of a mixture of experts; `[out, in]` matrices.
#[derive(Debug)]
pub struct ExpertsTensors {
    /// `[experts, hidden]`
    pub router: Tensor,
    /// Of the experts here `[experts, 2 * intermediate, hidden]`
    pub gate_up: Tensor,
    /// Of the experts here `[experts, hidden, intermediate]`
    pub down: Tensor,
}

/// The tensors behind the last layer.
#[derive(Debug)]
pub struct HeadTensors {
    /// `[hidden]`
    pub norm: Tensor,
    /// `[local vocabulary, hidden]`
    pub weight: Tensor,
}

impl HeadTensors {
    /// Views of the unit that holds the head: `table | norm` where it is tied, `norm | weight` where it is not.
    pub fn view(flat: &Tensor, hidden: usize, vocab_rows: usize, tied: bool) -> Option<Self> {
        let mut carve = Carve::new(flat);
        let (norm, weight);
        if tied {
            weight = carve.matrix(vocab_rows, hidden)?;
            norm = carve.vector(hidden)?;
        } else {
            norm = carve.vector(hidden)?;
            weight = carve.matrix(vocab_rows, hidden)?;
        }
        carve.is_done().then_some(Self { norm, weight })
    }
}

fn experts(
    router: Tensor,
    carve: &mut Carve<'_>,
    dims: &ExpertsDims,
    hidden: usize,
) -> Option<ExpertsTensors> {
    let (count, inner) = (dims.here, dims.intermediate);
    Some(ExpertsTensors {
        router,
        gate_up: carve.matrices(count, 2 * inner, hidden)?,
        down: carve.matrices(count, hidden, inner)?,
    })
}
