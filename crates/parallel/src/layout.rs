//! Where every parameter lies: which slice of it a tensor parallel rank holds, and at which offset of the unit's flat
//! buffer.

use std::ops::Range;

use tandem_mesh::{ShardSlice, partition};
use tandem_model::config::Axis;
use tandem_model::{Cut, ModelConfig, Module, ModuleTree, ParamSpec, UnitTree, adapted_module};

use crate::plan::{Plan, Style};
use crate::replicas::Replica;
use crate::tp_slices::TpSlices;

/// One parameter on one tensor parallel rank, or one part of it: a tensor whose rows are several things (q, k and v in one, say)
/// is cut along each of them, so that a rank holds several ranges of its rows, which are parameters of their own here.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalParam {
    /// The whole parameter.
    pub spec: ParamSpec,
    /// The rectangle of it that this is.
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
    /// Parameters, and parts of parameters, in the order of the flat buffer.
    pub params: Vec<LocalParam>,
    /// What other ranks of the row hold copies of.
    pub replicas: Vec<Replica>,
    /// Elements of the flat buffer.
    pub numel: usize,
    /// The layer whose experts it holds, where they are spread over ranks: some of its own, which other ranks than those of the column
    /// have too.
    pub experts_of: Option<usize>,
    /// Elements of the unit's parameters, whole; of experts that are spread, of those on the rank with the most. So all ranks agree.
    pub(crate) whole: usize,
}

/// Every unit of the model on the rank with this place in its row, and this one among those over which experts are spread. Experts
/// that are spread are units of their own, behind the others.
pub fn layouts(
    config: &ModelConfig,
    tree: &ModuleTree,
    plan: &Plan,
    slices: &TpSlices,
    (tp_rank, expert_rank): (usize, usize),
    sequence_parallel: bool,
) -> Vec<UnitLayout> {
    let rank = RankView {
        config,
        plan,
        slices,
        tp_rank,
        sequence_parallel,
    };
    let mut all: Vec<UnitLayout> = tree.units.iter().map(|unit| rank.unit(unit)).collect();
    let ranks = plan.expert_ranks();
    for (layer, unit) in (0..config.num_layers).zip(tree.units.iter().skip(1)) {
        // Adapters have a tree of their own, without experts.
        let has_experts = unit.modules.iter().any(|module| module.cut.is_of_expert());
        let Some(mixture) = config
            .experts_of(layer)
            .filter(|_| has_experts && ranks > 1)
        else {
            continue;
        };
        let experts = mixture.rule.experts;
        let share = |rank| spread_experts(unit, layer, experts, &partition(experts, ranks, rank));
        // The first have one more where they are not equal.
        let whole = share(0).numel;
        all.push(UnitLayout {
            whole,
            ..share(expert_rank)
        });
    }
    all
}

/// The experts `own` of all `experts` of a layer, whole.
fn spread_experts(tree: &UnitTree, layer: usize, experts: usize, own: &Range<usize>) -> UnitLayout {
    let mut layout = UnitLayout {
        name: format!("experts {layer}"),
        params: Vec::new(),
        replicas: Vec::new(),
        numel: 0,
        experts_of: Some(layer),
        whole: 0,
    };
    let of_experts = |is_output: bool| -> Vec<&Module> {
        let is_one = |module: &&Module| {
            let cut = module.cut;
            cut.is_of_expert() && matches!(cut, Cut::Outputs(_)) == is_output
        };
        tree.modules.iter().filter(is_one).collect()
    };
    // Of all experts what begins them, then what ends them, as in the tree.
    for modules in [of_experts(true), of_experts(false)] {
        let each = modules.len() / experts;
        for module in &modules[own.start * each..own.end * each] {
            let specs = tree.parameters.iter();
            for spec in specs.filter(|spec| spec.module() == module.path) {
                layout.params.push(LocalParam {
                    spec: spec.clone(),
                    offset: layout.numel,
                    slice: ShardSlice::whole(&spec.shape),
                    counted: 0..spec.numel(),
                });
                layout.numel += spec.numel();
            }
        }
    }
    layout
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
            experts_of: None,
            whole: 0,
        };
        let cut_of = |spec: &ParamSpec| {
            let owner = tree.modules.iter().find(|it| it.path == spec.module());
            owner.map_or(Cut::Whole, |module| module.cut)
        };
        let is_spread = |spec: &&ParamSpec| {
            let style = self.plan.styles.get(spec.module());
            matches!(style, Some(Style::ExpertParallel(_)))
        };
        for spec in tree.parameters.iter().filter(|spec| !is_spread(spec)) {
            let cut = cut_of(spec);
            layout.whole += spec.numel();
            for part in self.parts(spec, cut) {
                let (slice, counted) = self.place(spec, part.as_ref());
                let param = LocalParam {
                    spec: spec.clone(),
                    offset: layout.numel,
                    slice,
                    counted,
                };
                layout.numel += param.slice.numel();
                layout
                    .replicas
                    .extend(self.replicas(&param, part.as_ref(), cut));
                layout.params.push(param);
            }
        }
        layout
    }

    /// What is cut of `spec`, one after another; a single `None` where that is nothing.
    fn parts(&self, spec: &ParamSpec, cut: Cut) -> Vec<Option<Part>> {
        // An adapter is cut as what it adapts.
        let style = self.plan.styles.get(adapted_module(spec.module()));
        let part = |dim: usize, axis: Axis, start: usize| Part { dim, axis, start };
        match (style, cut) {
            (Some(Style::Colwise | Style::VocabParallel), Cut::Outputs(axes)) => {
                // Whole, what lies side by side in the tensor does so in the buffer.
                if axes.len() > 1 && self.slices.tp_size() == 1 {
                    return vec![None];
                }
                let mut start = 0;
                let mut next = |axis: &Axis| {
                    let part = part(0, *axis, start);
                    start += self.config.width(*axis);
                    Some(part)
                };
                axes.iter().map(&mut next).collect()
            }
            (Some(Style::Rowwise), Cut::Inputs(axis)) if spec.shape.len() == 2 => {
                vec![Some(part(1, axis, 0))]
            }
            _ => vec![None],
        }
    }

    /// The slice of `spec` held here, and the part of it that this rank answers for.
    fn place(&self, spec: &ParamSpec, part: Option<&Part>) -> (ShardSlice, Range<usize>) {
        let Some(&Part { dim, axis, start }) = part else {
            let slice = ShardSlice::whole(&spec.shape);
            let counted = if self.tp_rank == 0 {
                0..slice.numel()
            } else {
                0..0
            };
            return (slice, counted);
        };
        let range = self.range(axis, self.tp_rank);
        let slice = ShardSlice::narrow(&spec.shape, dim, start + range.start..start + range.end);
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

    /// In units of the tensor's dimension.
    fn range(&self, axis: Axis, rank: usize) -> Range<usize> {
        let dim = self.config.head_dim;
        let scaled = |range: &Range<usize>| range.start * dim..range.end * dim;
        match axis {
            Axis::QHeads => scaled(&self.slices.q_heads[rank]),
            Axis::KvHeads => scaled(&self.slices.kv_heads[rank]),
            Axis::Intermediate => self.slices.intermediate[rank].clone(),
            Axis::ExpertIntermediate => self.slices.expert_intermediate[rank].clone(),
            Axis::Vocab => self.slices.vocab[rank].clone(),
        }
    }

    fn replicas(&self, param: &LocalParam, part: Option<&Part>, cut: Cut) -> Vec<Replica> {
        if self.slices.tp_size() == 1 {
            return Vec::new();
        }
        match part {
            None => vec![Replica {
                name: param.spec.name.clone(),
                len: param.slice.numel(),
                flat: Some(param.span()),
                partial_gradient: self.has_partial_gradient(&param.spec, cut),
            }],
            Some(Part {
                axis: Axis::KvHeads,
                ..
            }) => self.shared_heads(param),
            Some(_) => Vec::new(),
        }
    }

    /// Whether the gradient of a parameter that every rank holds whole is of a part of the tokens or heads.
    fn has_partial_gradient(&self, spec: &ParamSpec, cut: Cut) -> bool {
        let block = || {
            adapted_module(spec.module())
                .rsplit_once('.')
                .map_or("", |(block, _)| block)
        };
        match cut {
            // Norms of heads see those of their rank.
            Cut::OfParts(_) => !self.plan.is_whole(block()),
            // In a block that every rank computes whole; a bias behind it is added to the rank's own tokens.
            Cut::Outputs(_) => false,
            Cut::Inputs(_) if spec.shape.len() > 1 => false,
            // These see all tokens, unless tokens are cut over the row.
            Cut::Inputs(_) | Cut::Whole => self.sequence_parallel,
        }
    }

    /// One replica for each key/value head that several ranks hold.
    fn shared_heads(&self, param: &LocalParam) -> Vec<Replica> {
        let held = &self.slices.kv_heads[self.tp_rank];
        let len = param.slice.numel() / held.len();
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

/// What is cut of a parameter: the range of `dim` that begins at `start` and runs over `axis`.
#[derive(Debug, Clone, Copy)]
struct Part {
    dim: usize,
    axis: Axis,
    start: usize,
}
