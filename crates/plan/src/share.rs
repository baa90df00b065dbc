//! What the first rank of a row holds and computes of a model: sizes alone, from the model's description and the plan's table.
//! Where parts are uneven, the first rank's are the largest.

use std::ops::Range;

use tandem_mesh::partition;
use tandem_model::lora::LoraConfig;
use tandem_model::{LayerDims, ModelConfig, ModuleTree};
use tandem_parallel::{
    Plan, ShardingLevel, TpSlices, TpSlicesError, UnitLayout, buffer_capacity, layouts,
};

use crate::group::Group;
use crate::settings::Settings;

/// A rank's share of a model, for rows of one width.
#[derive(Debug, Clone)]
pub struct Share {
    /// The embedding, the layers, and the head where it is not tied; behind them the experts of layers, where these are spread
    /// over ranks.
    pub(crate) units: Vec<Unit>,
    /// For each of these but the experts: the unit of its layer's experts.
    experts_of: Vec<Option<usize>>,
    /// Ranks over which experts are spread; 1 where they are not.
    pub(crate) expert_ranks: usize,
    /// The adapters of the layers that have some.
    pub(crate) adapters: Vec<Unit>,
    /// What is trained in the place of the model, if anything.
    pub(crate) lora: Option<LoraConfig>,
    /// The slice of each layer.
    pub(crate) layers: Vec<Layer>,
    /// Vocabulary entries.
    pub(crate) vocab: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Whether the head is the embedding.
    pub(crate) tied: bool,
    /// Whether scores of attention are bent.
    pub(crate) soft_cap: bool,
    /// Tables of rotary positions, and the numbers of a head that they rotate.
    pub(crate) rope_tables: usize,
    pub(crate) rotary_dim: usize,
    /// Experts of all layers together.
    pub(crate) experts: usize,
    /// Whether a loss keeps them in balance, so that several micro-batches are looked ahead at.
    pub(crate) looks_ahead: bool,
}

/// A unit of the model on this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Elements.
    pub numel: usize,
    /// Elements of the buffers that serve it, and others of nearly its size.
    pub capacity: usize,
    /// Whether no other unit shares its buffers, so that it keeps them.
    pub is_alone: bool,
    /// Elements of whose gradient every rank of the row has a part.
    pub partial: usize,
    /// The layer whose experts it holds, and over how many ranks these are spread: other ranks than those of the column have it
    /// too.
    pub spread: Option<(usize, usize)>,
}

impl Unit {
    fn of(layout: &UnitLayout, is_alone: bool, expert_ranks: usize) -> Self {
        let partial = layout.replicas.iter().filter(|it| it.partial_gradient);
        Self {
            numel: layout.numel,
            capacity: buffer_capacity(layout.numel),
            is_alone,
            partial: partial.map(|replica| replica.len).sum(),
            spread: layout.experts_of.map(|layer| (layer, expert_ranks)),
        }
    }

    /// The ranks that have the same of it.
    pub fn replicas(&self, settings: &Settings) -> usize {
        match self.spread {
            None => settings.dp(),
            Some((_, ranks)) => settings.mesh.world_size() / ranks,
        }
    }

    /// Those ranks.
    pub fn column(&self) -> Group {
        match self.spread {
            None => Group::Dp,
            Some(_) => Group::Edp,
        }
    }

    /// What of it is cut over these ranks.
    pub fn level(&self, settings: &Settings) -> ShardingLevel {
        match self.is_alone {
            _ if self.replicas(settings) == 1 => ShardingLevel::Replicated,
            true => settings.level.min(ShardingLevel::Optimizer),
            false => settings.level,
        }
    }
}

/// One layer on this rank.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layer {
    pub dims: LayerDims,
    /// Keys that a query sees at most, where that is not all.
    pub window: Option<usize>,
    /// Whether the rank computes a slice of the attention, and of the MLP, so that there is a sum over the row.
    pub cuts_attention: bool,
    pub cuts_mlp: bool,
    /// Adapters: how many matrices have one, by the place of their input (q|k|v, o, gate|up, down).
    pub adapted: [usize; 4],
    /// Adapters' elements.
    pub adapter_numel: usize,
}

impl Share {
    /// The share of a rank of rows of `tp_size`; with `lora`, adapters are trained and the model is frozen.
    ///
    /// # Errors
    /// When the model is too small for such rows.
    pub fn new(
        config: &ModelConfig,
        plan: &Plan,
        tp_size: usize,
        sequence_parallel: bool,
        lora: Option<(&LoraConfig, &ModuleTree)>,
    ) -> Result<Self, TpSlicesError> {
        let tree = ModuleTree::new(config);
        let slices = TpSlices::new(config, tp_size)?;
        let expert_ranks = plan.expert_ranks();
        let layouts_of =
            |tree: &ModuleTree| layouts(config, tree, plan, &slices, (0, 0), sequence_parallel);
        let units = layouts_of(&tree);
        // The highest level shows who has buffers to itself.
        let levels = ShardingLevel::Parameters.of_units(&units);
        let adapters = lora.map(|(_, tree)| layouts_of(tree)).unwrap_or_default();
        let layers = (0..config.num_layers).map(|index| {
            let whole = plan.whole_blocks(config, index);
            let experts = config.experts_of(index).filter(|_| expert_ranks > 1);
            let experts = experts.map(|it| partition(it.rule.experts, expert_ranks, 0));
            let own = slices.layer_dims(config, index, 0, experts);
            let adapter = adapters.get(index);
            let names = adapter.map_or(Vec::new(), adapted_modules);
            Layer {
                dims: own.with_whole(config, index, whole),
                window: config.sliding_window.get(index).copied().flatten(),
                cuts_attention: !whole.attention,
                cuts_mlp: !whole.mlp,
                adapted: by_place(config, &names),
                adapter_numel: adapter.map_or(0, |layout| layout.numel),
            }
        });
        let layers = layers.collect();
        let mut ropes = Vec::new();
        for rope in config.rope.iter().flatten() {
            if !ropes.contains(&rope) {
                ropes.push(rope);
            }
        }
        let experts = config.experts.as_ref();
        let sparse = experts.map_or(0, |it| it.sparse.iter().filter(|is| **is).count());
        let units = units.iter().zip(levels).map(|(layout, level)| {
            Unit::of(layout, level < ShardingLevel::Parameters, expert_ranks)
        });
        let units: Vec<Unit> = units.collect();
        Ok(Self {
            experts_of: experts_of(&units),
            units,
            expert_ranks,
            adapters: adapters
                .iter()
                .filter(|layout| layout.numel > 0)
                .map(|layout| Unit::of(layout, true, expert_ranks))
                .collect(),
            lora: lora.map(|(config, _)| config.clone()),
            layers,
            vocab: slices.vocab[0].len(),
            hidden: config.hidden_size,
            tied: config.tie_word_embeddings,
            soft_cap: config.attention_soft_cap.is_some(),
            rope_tables: ropes.len(),
            rotary_dim: config.rotary_dim,
            experts: experts.map_or(0, |it| it.rule.experts) * sparse,
            looks_ahead: experts.is_some_and(|it| it.balance.is_some()),
        })
    }

    /// The embedding, the layers, and the head where it is not tied: by these numbers a step walks through the units.
    pub(crate) fn walked(&self) -> Range<usize> {
        0..self.experts_of.len()
    }

    /// A unit by such a number, and that of its layer's experts where they are spread; nothing behind the last.
    pub(crate) fn with_experts(&self, unit: usize) -> impl Iterator<Item = usize> + use<> {
        let own = self.walked().contains(&unit).then_some(unit);
        let experts = self.experts_of.get(unit).copied().flatten();
        own.into_iter().chain(experts)
    }

    /// Whether several ranks have the same of anything.
    pub(crate) fn has_replicas(&self, settings: &Settings) -> bool {
        self.units.iter().any(|unit| unit.replicas(settings) > 1)
    }

    /// Whether the model is frozen, and its adapters are trained.
    pub(crate) fn is_frozen(&self) -> bool {
        self.lora.is_some()
    }
}

/// For each unit but those of experts, the unit of its layer's experts.
fn experts_of(units: &[Unit]) -> Vec<Option<usize>> {
    let walked = units.iter().filter(|unit| unit.spread.is_none()).count();
    let mut experts = vec![None; walked];
    for (index, unit) in units.iter().enumerate() {
        if let Some((layer, _)) = unit.spread {
            // The embedding is before the layers.
            experts[1 + layer] = Some(index);
        }
    }
    experts
}

/// The last words of the paths of modules that have an adapter.
fn adapted_modules(layout: &UnitLayout) -> Vec<&str> {
    let names = layout.params.iter().filter_map(|param| {
        let module = param.spec.module().strip_suffix(".lora_A")?;
        module.rsplit('.').next()
    });
    names.collect()
}

/// How many of `names` are of q|k|v, of what returns from the attention, of gate|up, and of what returns from the MLP.
fn by_place(config: &ModelConfig, names: &[&str]) -> [usize; 4] {
    let count = |is: &dyn Fn(&str) -> bool| names.iter().filter(|name| is(name)).count();
    let [of_qkv, of_gate_up] = [config.qkv, config.gate_up]
        .map(|projections| count(&|name: &str| projections.iter().any(|it| it.name == name)));
    let returns = count(&|name| name == "o_proj");
    [
        of_qkv,
        returns,
        of_gate_up,
        names.len() - of_qkv - of_gate_up - returns,
    ]
}
