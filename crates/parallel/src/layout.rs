//! Where every parameter lies: which slice of it a tensor parallel rank holds, and at which offset of the unit's flat
//! buffer.

use std::ops::Range;

use tandem_mesh::ShardSlice;
use tandem_model::{ModelConfig, ModuleTree, ParamSpec, UnitTree};

use crate::plan::{self, Axis, Plan, Style};
use crate::replicas::Replica;
use crate::tp_slices::TpSlices;

/// One parameter on one tensor parallel rank.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalParam {
    /// The whole parameter.
    pub spec: ParamSpec,
    /// The rectangle of it that this rank holds.
    pub slice: ShardSlice,
    /// First element in the flat buffer.
    pub offset: usize,
    /// Of the local elements, those that this rank answers for: each element of the model is counted by exactly one
    /// rank of the row (gradient norm, checkpoints).
    pub counted: Range<usize>,
}

impl LocalParam {
    /// Where it lies in the flat buffer.
    pub fn span(&self) -> Range<usize> {
        self.offset..self.offset + self.slice.numel()
    }
}

/// One unit on one tensor parallel rank.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitLayout {
    /// The unit's name.
    pub name: String,
    /// Parameters in the order of the flat buffer.
    pub params: Vec<LocalParam>,
    /// What other ranks of the row hold copies of.
    pub replicas: Vec<Replica>,
    /// Elements of the flat buffer.
    pub numel: usize,
}

/// Every unit of the model on `tp_rank`.
pub fn layouts(
    config: &ModelConfig,
    tree: &ModuleTree,
    plan: &Plan,
    slices: &TpSlices,
    tp_rank: usize,
    sequence_parallel: bool,
) -> Vec<UnitLayout> {
    let rank = RankView {
        config,
        plan,
        slices,
        tp_rank,
        sequence_parallel,
    };
    tree.units.iter().map(|unit| rank.unit(unit)).collect()
}

struct RankView<'a> {
    config: &'a ModelConfig,
    plan: &'a Plan,
    slices: &'a TpSlices,
    tp_rank: usize,
    sequence_parallel: bool,
}

impl RankView<'_> {
    fn unit(&self, tree: &UnitTree) -> UnitLayout {
        let mut layout = UnitLayout {
            name: tree.name.clone(),
            params: Vec::new(),
            replicas: Vec::new(),
            numel: 0,
        };
        for spec in &tree.parameters {
            let (slice, counted) = self.place(spec);
            let param = LocalParam {
                spec: spec.clone(),
                offset: layout.numel,
                slice,
                counted,
            };
            layout.numel += param.slice.numel();
            layout.replicas.extend(self.replicas(&param));
            layout.params.push(param);
        }
        layout
    }

    /// The slice of `spec` held here, and the part of it that this rank answers for.
    fn place(&self, spec: &ParamSpec) -> (ShardSlice, Range<usize>) {
        match self.sharded_dim(spec) {
            None => {
                let slice = ShardSlice::whole(&spec.shape);
                let counted = if self.tp_rank == 0 {
                    0..slice.numel()
                } else {
                    0..0
                };
                (slice, counted)
            }
            Some((dim, axis)) => {
                let range = self.range(axis, self.tp_rank);
                let slice = ShardSlice::narrow(&spec.shape, dim, range.clone());
                // Shared key/value heads belong to the first rank that holds them.
                let first_own = match (axis, self.tp_rank) {
                    (Axis::KvHeads, rank) if rank > 0 => {
                        self.range(axis, rank - 1).end.clamp(range.start, range.end)
                    }
                    _ => range.start,
                };
                let per_row = slice.numel() / range.len().max(1);
                let counted = (first_own - range.start) * per_row..slice.numel();
                (slice, counted)
            }
        }
    }

    /// The dimension of `spec` that is cut over the row, and what it runs over.
    fn sharded_dim(&self, spec: &ParamSpec) -> Option<(usize, Axis)> {
        let module = spec.module();
        let axis = plan::axis(module)?;
        match self.plan.styles.get(module)? {
            Style::Colwise | Style::VocabParallel => Some((0, axis)),
            Style::Rowwise if spec.shape.len() == 2 => Some((1, axis)),
            Style::Rowwise | Style::Replicate => None,
        }
    }

    /// In units of the tensor's dimension.
    fn range(&self, axis: Axis, rank: usize) -> Range<usize> {
        let dim = self.config.head_dim;
        let scaled = |range: &Range<usize>| range.start * dim..range.end * dim;
        match axis {
            Axis::QHeads => scaled(&self.slices.q_heads[rank]),
            Axis::KvHeads => scaled(&self.slices.kv_heads[rank]),
            Axis::Intermediate => self.slices.intermediate[rank].clone(),
            Axis::Vocab => self.slices.vocab[rank].clone(),
        }
    }

    fn replicas(&self, param: &LocalParam) -> Vec<Replica> {
        if self.slices.tp_size() == 1 {
            return Vec::new();
        }
        match self.sharded_dim(&param.spec) {
            None => vec![Replica {
                name: param.spec.name.clone(),
                len: param.slice.numel(),
                flat: Some(param.span()),
                // Norms and row-parallel biases see all tokens, unless tokens are cut over the row.
                partial_gradient: self.sees_own_part(param.spec.module()) || self.sequence_parallel,
            }],
            Some((_, Axis::KvHeads)) => self.shared_heads(param),
            Some(_) => Vec::new(),
        }
    }

    /// Whether a module that every rank holds whole is given only this rank's part of an axis.
    fn sees_own_part(&self, module: &str) -> bool {
        let is_whole = self.plan.styles.get(module) == Some(&Style::Replicate);
        is_whole && plan::axis(module).is_some()
    }

    /// One replica for each key/value head that several ranks hold.
    fn shared_heads(&self, param: &LocalParam) -> Vec<Replica> {
        let held = &self.slices.kv_heads[self.tp_rank];
        let len = param.spec.numel() / self.config.num_kv_heads;
        (0..self.config.num_kv_heads)
            .filter(|&head| self.slices.kv_holders(head).len() > 1)
            .map(|head| Replica {
                name: param.spec.name.clone(),
                len,
                flat: held.contains(&head).then(|| {
                    let start = param.offset + (head - held.start) * len;
                    start..start + len
                }),
                partial_gradient: true,
            })
            .collect()
    }
}
