//! How much memory a rank will need, before anything is loaded.

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

/// What one rank of a mesh with `dp_size` columns will need for the units `layouts`, for micro-batches of `batch_size` rows of
/// `seq_length` tokens.
#[expect(
    clippy::too_many_arguments,
    reason = "everything that memory depends on"
)]
pub fn estimate_memory(
    config: &ModelConfig,
    layouts: &[UnitLayout],
    level: ShardingLevel,
    precision: Precision,
    dp_size: usize,
    (batch_size, seq_length): (usize, usize),
    recompute: Recompute,
    head_chunk_rows: usize,
) -> MemoryEstimate {
    // No product of what follows overflows these: parameters have 50 bits at most, flags 64.
    let dp = dp_size as u128;
    let tokens = batch_size as u128 * seq_length as u128;
    let numel: u128 = layouts.iter().map(|unit| unit.numel as u128).sum();
    let levels = level.of_units(layouts);
    let levels = if dp > 1 {
        levels
    } else {
        vec![ShardingLevel::Replicated; layouts.len()]
    };
    let units = || layouts.iter().map(|unit| unit.numel as u128).zip(&levels);
    // What a rank keeps of a state that is cut from some level on.
    let kept = |from: ShardingLevel| -> u128 {
        let of_unit = |(numel, level): (u128, &ShardingLevel)| match *level >= from {
            true => numel.div_ceil(dp),
            false => numel,
        };
        units().map(of_unit).sum()
    };
    // Two of the units that are cut are gathered, or reduced, at the same time.
    let in_flight = |from: ShardingLevel| {
        let cut = units().filter(|(_, level)| **level >= from);
        2 * cut.map(|(numel, _)| numel).max().unwrap_or(0)
    };
    let param_bytes = precision.param.elt_size_in_bytes() as u128;
    let master = if param_bytes == 4 { 0 } else { 4 };
    let activation_bytes = precision.matmul.elt_size_in_bytes() as u128;

    // Of a mixture's experts, a token sees those that it goes to.
    let seen = |unit: &UnitLayout| -> u128 {
        let Some(experts) = &config.experts else {
            return unit.numel as u128;
        };
        let (top_k, count) = (experts.rule.top_k as u128, experts.rule.experts as u128);
        let params = unit.params.iter();
        let of_param = |param: &LocalParam| match param.spec.name.contains(".experts.") {
            true => param.slice.numel() as u128 * top_k / count,
            false => param.slice.numel() as u128,
        };
        params.map(of_param).sum()
    };
    let of_layers = layouts.iter().skip(1).take(config.num_layers);
    let layer_params = of_layers.map(seen).max().unwrap_or(0);
    let hidden = config.hidden_size as u128;
    // A layer's matrices have one output column per saved activation: width = parameters / hidden, less what is not kept.
    let width = layer_params / hidden.max(1) + 2 * hidden;
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
        saving: bytes(12 * numel.div_ceil(dp)),
        temporaries: bytes(
            (3 * activation_bytes * vocab_rows)
                .saturating_mul(rows)
                .saturating_add(activation_bytes * vocab_rows * hidden),
        ),
        fixed: 300 << 20,
    }
}
