//! How much memory a rank will need, before anything is loaded.

use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, Recompute};
use tandem_parallel::{LocalParam, Precision, ShardingLevel, UnitLayout};

/// Bytes per rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Parameters in the compute kind, with the buffers they are gathered into.
    pub parameters: u64,
    /// fp32 gradients.
    pub gradients: u64,
    /// fp32 master weights and both moments.
    pub optimizer: u64,
    /// What a micro-batch keeps for backward.
    pub activations: u64,
    /// The copy of weights and moments that is being saved.
    pub saving: u64,
    /// The largest temporaries: logits of a chunk, a weight gradient before it is accumulated.
    pub temporaries: u64,
    /// libtorch, code, buffers of the collectives.
    pub fixed: u64,
}

impl MemoryEstimate {
    /// The sum. What does not fit into 64 bits is as much as they can say, here and in every part.
    pub fn total(&self) -> u64 {
        let parts = [
            self.parameters,
            self.gradients,
            self.optimizer,
            self.activations,
            self.saving,
            self.temporaries,
            self.fixed,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// Into 64 bits, as far as that goes.
fn bytes(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// What one rank of `mesh` will need for the units `layouts`, with experts spread over `expert_ranks` ranks, for micro-batches of
/// `batch_size` rows of `seq_length` tokens.
///
/// Experts that are spread over ranks are reckoned with as if each got as many tokens as any other.
#[expect(
    clippy::too_many_arguments,
    reason = "everything that memory depends on"
)]
pub fn estimate_memory(
    config: &ModelConfig,
    layouts: &[UnitLayout],
    level: ShardingLevel,
    precision: Precision,
    (mesh, expert_ranks): (DeviceMesh, usize),
    (batch_size, seq_length): (usize, usize),
    recompute: Recompute,
    head_chunk_rows: usize,
) -> MemoryEstimate {
    // No product of what follows overflows these: parameters have 50 bits at most, flags 64.
    let (tp, dp) = (mesh.tp_size() as u128, mesh.dp_size() as u128);
    // The ranks that have the same of a unit.
    let ranks = |unit: &UnitLayout| match unit.experts_of {
        None => dp,
        Some(_) => (mesh.world_size() / expert_ranks) as u128,
    };
    let tokens = batch_size as u128 * seq_length as u128;
    let share = |unit: &UnitLayout| (unit.numel as u128).div_ceil(ranks(unit));
    let saved_by_each: u128 = layouts.iter().map(share).sum();
    let levels = level.of_units(layouts);
    let level = |(unit, level): (&UnitLayout, ShardingLevel)| match ranks(unit) {
        1 => ShardingLevel::Replicated,
        _ => level,
    };
    let levels: Vec<ShardingLevel> = layouts.iter().zip(levels).map(level).collect();
    // What a rank keeps of a state that is cut from some level on.
    let kept = |from: ShardingLevel| -> u128 {
        let of_unit = |(unit, level): (&UnitLayout, &ShardingLevel)| match *level >= from {
            true => share(unit),
            false => unit.numel as u128,
        };
        layouts.iter().zip(&levels).map(of_unit).sum()
    };
    // Two of the units that are cut are gathered, or reduced, at the same time; and of experts that are units of their own.
    let in_flight = |from: ShardingLevel| -> u128 {
        let largest = |of_experts: bool| {
            let units = layouts.iter().zip(&levels);
            let cut = units
                .filter(|(unit, level)| **level >= from && unit.experts_of.is_some() == of_experts);
            cut.map(|(unit, _)| unit.numel as u128).max().unwrap_or(0)
        };
        2 * (largest(false) + largest(true))
    };
    let param_bytes = precision.param.elt_size_in_bytes() as u128;
    let master = if param_bytes == 4 { 0 } else { 4 };
    let activation_bytes = precision.matmul.elt_size_in_bytes() as u128;

    // Of a mixture's experts, a token sees those that it goes to. Spread over ranks, a row's tokens are shared out over it.
    let (top_k, count) = config.experts.as_ref().map_or((1, 1), |experts| {
        (experts.rule.top_k as u128, experts.rule.experts as u128)
    });
    let seen = |unit: &UnitLayout| -> u128 {
        let params = unit.params.iter();
        let of_param = |param: &LocalParam| {
            let numel = param.slice.numel() as u128;
            match param.spec.name.contains(".experts.") {
                true if unit.experts_of.is_some() => {
                    numel * expert_ranks as u128 * top_k / count / tp
                }
                true => numel * top_k / count,
                false => numel,
            }
        };
        params.map(of_param).sum()
    };
    let spread = || layouts.iter().filter(|unit| unit.experts_of.is_some());
    let of_layers = layouts.iter().skip(1).take(config.num_layers);
    let layer_params =
        of_layers.map(seen).max().unwrap_or(0) + spread().map(seen).max().unwrap_or(0);
    let hidden = config.hidden_size as u128;
    // A layer's matrices have one output column per saved activation: width = parameters / hidden, less what is not kept.
    let width = layer_params / hidden.max(1) + 2 * hidden;
    // Rows that came from other ranks are kept too.
    let width = match spread().next() {
        Some(_) => width + (top_k * hidden).div_ceil(tp),
        None => width,
    };
    let saved = match recompute {
        // Two norms' outputs, and what the down projection multiplies: about a third of the matrices' width.
        Recompute::None => width + width / 3 + 2 * hidden,
        Recompute::Light => width,
        Recompute::Full => hidden,
    };
    let once = match recompute {
        Recompute::Full => width,
        _ => 0,
    };
    let of_a_token = activation_bytes * (saved * config.num_layers as u128 + once);
    let vocab_rows = layouts
        .first()
        .and_then(|unit| unit.params.first())
        .map_or(0, |table| table.slice.numel() as u128 / hidden.max(1));
    let rows = tokens.min(head_chunk_rows as u128);
    MemoryEstimate {
        parameters: bytes(
            param_bytes * (kept(ShardingLevel::Parameters) + in_flight(ShardingLevel::Parameters)),
        ),
        gradients: bytes(
            4 * (kept(ShardingLevel::Gradients) + in_flight(ShardingLevel::Gradients)),
        ),
        optimizer: bytes((8 + master) * kept(ShardingLevel::Optimizer)),
        activations: bytes(tokens.saturating_mul(of_a_token)),
        saving: bytes(12 * saved_by_each),
        temporaries: bytes(
            (3 * activation_bytes * vocab_rows)
                .saturating_mul(rows)
                .saturating_add(activation_bytes * vocab_rows * hidden),
        ),
        fixed: 300 << 20,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tandem_model::ModuleTree;
    use tandem_parallel::{Plan, TpSlices, layouts};

    use super::*;

    /// Sharded, everything is a quarter on four ranks, wherever experts are. Whole on every rank that has it, a spread expert is
    /// on fewer ranks, and its gradients and states with it.
    #[test]
    fn spread_experts_are_on_their_ranks_alone() {
        let json = json!({
            "architectures": ["MixtralForCausalLM"], "num_hidden_layers": 3, "hidden_size": 64,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 320,
            "max_position_embeddings": 64, "num_local_experts": 8, "num_experts_per_tok": 2,
        });
        let config = ModelConfig::from_json(json.as_object().expect("an object")).expect("a model");
        let tree = ModuleTree::new(&config);
        let mesh = DeviceMesh::new(1, 4).expect("a mesh");
        let estimate = |ranks: usize, level| {
            let plan = Plan::declared(&tree).with_spread_experts(&config, &tree, ranks);
            let plan = plan.expect("eight experts");
            let slices = TpSlices::new(&config, 1).expect("a row of one");
            let units = layouts(&config, &tree, &plan, &slices, (0, 0), false);
            let (precision, batch) = (Precision::bf16(), (1, 64));
            estimate_memory(
                &config,
                &units,
                level,
                precision,
                (mesh, ranks),
                batch,
                Recompute::Light,
                64,
            )
        };
        let numel = tree.numel() as u64;
        let of_experts = 3 * 8 * 3 * 64 * 96;
        for ranks in [1, 2, 4] {
            let here = numel - of_experts + of_experts / ranks as u64;
            let whole = estimate(ranks, ShardingLevel::Replicated);
            assert_eq!(whole.parameters, 2 * here);
            assert_eq!(whole.gradients, 4 * here);
            assert_eq!(whole.optimizer, 12 * here);
            let sharded = estimate(ranks, ShardingLevel::Parameters);
            let quarter = 12 * numel.div_ceil(4);
            assert!(sharded.optimizer.abs_diff(quarter) < 12 * 16, "{ranks}");
            assert_eq!(whole.saving, sharded.saving);
        }
    }
}
