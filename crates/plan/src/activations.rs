//! What forward keeps for backward and what is computed with in between, in bytes, at the moment when that is most.
//!
//! The names are those of the structs in `tandem_model`'s layers, whose fields these are.

use tandem_model::{ExpertsDims, Recompute};
use tandem_tensor::attention;

use crate::place::Place;
use crate::settings::Settings;
use crate::share::{Layer, Share};

/// The fullest moment of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub activations: u128,
    /// Of the head's chunk, whose memory stays.
    pub logits: u128,
}

/// Sizes that all layers share.
struct Sizes<'a> {
    /// Tokens of a micro-batch, and this rank's of the residual stream.
    all: u128,
    own: u128,
    hidden: u128,
    settings: &'a Settings,
    /// Bytes of a number in products, and in the residual stream.
    c: u128,
    r: u128,
    cuts_tokens: bool,
    recompute: Recompute,
    place: Place,
    /// Bytes of the scores of one head, where they exist at all.
    scores: u128,
}

/// Matrices of scores, fp32, that are alive at once where attention is computed as its formula says it: the scores, the slope of
/// their bend, the probabilities, and two of the gradients on their way.
const SCORES: u128 = 5;

impl<'a> Sizes<'a> {
    fn of(share: &Share, settings: &'a Settings, place: Place) -> Self {
        let matmul = settings.precision.matmul;
        let is_in_kernel = place == Place::Cpu && attention::bends_in_kernel(matmul);
        Self {
            scores: match share.soft_cap && !is_in_kernel {
                true => settings.tokens() * settings.seq_length as u128 * 4 * SCORES,
                false => 0,
            },
            all: settings.tokens(),
            own: settings.own_tokens(),
            hidden: share.hidden as u128,
            settings,
            c: settings.product_bytes(),
            r: settings.residual_bytes(),
            cuts_tokens: settings.cuts_tokens(),
            recompute: settings.recompute,
            place,
        }
    }

    /// The residual stream of this rank.
    fn stream(&self) -> u128 {
        self.own * self.hidden * self.r
    }

    /// The input of a block, for all tokens; where the stream is cut, with this rank's own before it was gathered.
    fn block_input(&self) -> u128 {
        self.all * self.hidden * self.c
    }

    /// `rstd` of a norm.
    fn rstd(&self) -> u128 {
        4 * self.own
    }

    /// The gradient of a branch where it is no view of that of the stream: of another kind, or gathered.
    fn branch_gradient(&self) -> u128 {
        match self.cuts_tokens || self.c != self.r {
            true => self.block_input(),
            false => 0,
        }
    }
}

/// Bytes that a layer keeps, less its input.
#[derive(Default)]
struct LayerKept {
    attention: u128,
    middle: u128,
    mlp: u128,
}

impl LayerKept {
    fn all(&self) -> u128 {
        self.attention + self.middle + self.mlp
    }
}

/// What forward keeps of a layer if it keeps what `recompute` says.
fn kept(layer: &Layer, s: &Sizes<'_>, recompute: Recompute) -> LayerKept {
    let dims = &layer.dims;
    let norms = &dims.layer_norms;
    let keeps_all = recompute == Recompute::None;
    let (heads, qkv) = (dims.q_heads as u128, dims.qkv_width() as u128);
    let q_width = heads * dims.head_dim as u128;
    let branch = |has_norm: bool| match has_norm {
        true => s.own * s.hidden * s.c + s.rstd(),
        false => 0,
    };
    let input = |has_norm: bool| match keeps_all && (has_norm || s.cuts_tokens || s.c != s.r) {
        true => s.block_input(),
        false => 0,
    };
    // Whoever chooses for a share of the tokens gathers none.
    let is_spread = dims.spreads_experts();
    let mlp_input = match (is_spread, norms.before_mlp.is_some()) {
        (false, has_norm) => input(has_norm),
        (true, has_norm) if keeps_all && (has_norm || s.c != s.r) => s.own * s.hidden * s.c,
        (true, _) => 0,
    };
    let attention = s.all * (qkv + q_width) * s.c
        + 4 * s.all * heads
        + s.rstd()
        + input(norms.before_attention.is_some())
        + branch(norms.after_attention.is_some());
    let mlp = match &dims.experts {
        None => {
            let inner = dims.intermediate as u128;
            s.all * inner * s.c * if keeps_all { 3 } else { 2 }
        }
        Some(experts) => {
            let Routed {
                rows,
                inner,
                tables,
                ..
            } = Routed::of(experts, s);
            // Of experts that are spread, the rows that came are kept.
            let came = if is_spread { rows * s.hidden * s.c } else { 0 };
            rows * inner * s.c * if keeps_all { 3 } else { 2 } + tables + came
        }
    };
    LayerKept {
        attention,
        middle: s.stream(),
        mlp: mlp + s.rstd() + mlp_input + branch(norms.after_mlp.is_some()),
    }
}

/// Rows of a mixture of experts.
struct Routed {
    /// Tokens that this rank chooses experts for.
    tokens: u128,
    rows: u128,
    inner: u128,
    /// Of all experts, for these tokens.
    probabilities: u128,
    /// What is written down of the choice, with these.
    tables: u128,
}

impl Routed {
    fn of(experts: &ExpertsDims, s: &Sizes<'_>) -> Self {
        // Spread over ranks, each gets as many as it sends.
        let tokens = s.settings.routed_tokens(experts);
        let rows = tokens * experts.rule.top_k as u128;
        let probabilities = tokens * 4 * experts.rule.experts as u128;
        // Per row the choice, its weight, its factor, and twice where it comes from and where it is; the same of those that came.
        let places = match experts.is_spread() {
            true => 4 * 16,
            false => 2 * 16,
        };
        Self {
            tokens,
            rows,
            inner: experts.intermediate as u128,
            probabilities,
            tables: probabilities + rows * (4 + 4 + 4 + places),
        }
    }
}

/// What the backward pass of a layer has at most beside what is kept of all layers, its output's gradient included.
fn backward(layer: &Layer, s: &Sizes<'_>, share: &Share) -> u128 {
    let dims = &layer.dims;
    let norms = &dims.layer_norms;
    let light = s.recompute == Recompute::Light;
    // Made again: all that forward would have kept.
    let again = match s.recompute {
        Recompute::Full => kept(layer, s, Recompute::None).all(),
        _ => 0,
    };
    let own = kept(
        layer,
        s,
        match s.recompute {
            Recompute::Full => Recompute::None,
            other => other,
        },
    );
    let needs_product = !share.is_frozen() || layer.adapted[3] > 0;
    let (d_out, d_branch) = (s.stream(), s.branch_gradient());
    let after = |has_norm: bool| match has_norm {
        true => s.own * s.hidden * s.c,
        false => 0,
    };
    let input_again = if light { s.block_input() } else { 0 };
    let gathered = if light && s.cuts_tokens {
        s.own * s.hidden * s.c
    } else {
        0
    };
    let mlp = match &dims.experts {
        None => {
            let inner = s.all * dims.intermediate as u128 * s.c;
            let product = if light && needs_product { inner } else { 0 };
            let adapters = match layer.adapted[2] + layer.adapted[3] {
                0 => 0,
                _ => inner.max(s.block_input()),
            };
            let first = inner + product + 2 * inner + s.block_input().max(adapters);
            // gate|up is gone, and so is the gradient of the product.
            let second = product + s.block_input() + input_again + gathered;
            first.max(second)
        }
        Some(experts) => {
            let Routed {
                tokens,
                rows,
                inner,
                probabilities,
                ..
            } = Routed::of(experts, s);
            let (wide, narrow) = (rows * s.hidden * s.c, rows * inner * s.c);
            let product = if light { narrow } else { 0 };
            // The rows' gradients, those of the weighted product and of gate|up, and the product both ways.
            let first = wide + 4 * narrow + product;
            let rest = match experts.is_spread() {
                false => {
                    let second = 2 * wide + 3 * narrow + s.block_input();
                    second + input_again + gathered
                }
                // What goes back to where it came from is there as it came, and as it is when it arrives, while the gradients of
                // weights are computed; then it is summed for a share of the tokens, and joined.
                true => {
                    let second = 3 * wide + 3 * narrow;
                    let shares = tokens * s.hidden * s.c + s.block_input();
                    let own_again = if light { s.own * s.hidden * s.c } else { 0 };
                    second.max(wide + shares + own_again)
                }
            };
            first.max(rest) + 2 * probabilities
        }
    };
    let is_spread = dims.spreads_experts();
    let d_mlp_branch = match (is_spread, s.c == s.r) {
        (false, _) => d_branch,
        (true, true) => 0,
        (true, false) => s.own * s.hidden * s.c,
    };
    let mlp = d_out + d_mlp_branch + after(norms.after_mlp.is_some()) + mlp;
    let (heads, qkv) = (dims.q_heads as u128, dims.qkv_width() as u128);
    let q_width = heads * dims.head_dim as u128;
    // Sums of fp32 for each query head: of keys and values where kernels are our own, of queries in FlashAttention.
    let sums = match s.place {
        Place::Cpu => 2 * 4 * s.all * q_width,
        Place::Cuda => 4 * s.all * q_width,
    };
    let kernel = s.all * (q_width + qkv) * s.c + sums.max(s.scores * heads);
    let rest = s.all * qkv * s.c + s.block_input() + input_again + gathered;
    // What the MLP kept is gone.
    let attention =
        d_out + d_branch + s.stream() + after(norms.after_attention.is_some()) + kernel.max(rest);
    again + mlp.max(attention.saturating_sub(own.mlp))
}

/// The chunk of logits, which stays, and what else there is while it becomes a loss and a gradient.
fn head(share: &Share, settings: &Settings, s: &Sizes<'_>) -> (u128, u128) {
    let rows = s.all.min(settings.head_chunk_rows.max(1) as u128);
    let vocab = share.vocab as u128;
    let logits = rows * vocab * s.c;
    // As tensor operations, both passes have three copies in fp32 at a time.
    let passes = match s.place {
        Place::Cpu => 0,
        Place::Cuda => 3 * 4 * rows * vocab,
    };
    // Parameters of another kind than products are cast whole.
    let stored = match share.is_frozen() {
        true => settings.precision.frozen().param,
        false => settings.precision.param,
    };
    let cast = match stored == settings.precision.matmul {
        true => 0,
        false => vocab * s.hidden * s.c,
    };
    // The normed stream and its gradient, for all tokens and for this rank's.
    let normed = 2 * s.block_input() + if s.cuts_tokens { s.block_input() } else { 0 };
    (logits + passes, normed + s.stream() + cast)
}

/// Percent of activations that lie in pieces of the wrong size: glibc keeps freed memory in one heap. Measured with 24 layers
/// (`cargo xtask bench plan`), 2 to 36; CUDA's allocator is not here to be measured.
fn lost(place: Place) -> u128 {
    match place {
        Place::Cpu => 15,
        Place::Cuda => 0,
    }
}

/// The fullest moment: in the head, or in the backward pass of a layer.
pub(crate) fn fullest(share: &Share, settings: &Settings, place: Place) -> Moment {
    let s = Sizes::of(share, settings, place);
    let input = s.stream();
    let of_layer = |layer: &Layer| {
        input
            + match s.recompute {
                Recompute::Full => 0,
                other => kept(layer, &s, other).all(),
            }
    };
    let (logits, in_head) = head(share, settings, &s);
    let mut before: u128 = share.layers.iter().map(of_layer).sum();
    let mut most = before + in_head;
    for layer in share.layers.iter().rev() {
        most = most.max(before + backward(layer, &s, share));
        before -= of_layer(layer);
    }
    // Cosines and sines.
    let angles = share.rope_tables * share.rotary_dim * 4;
    let tables = angles as u128 * settings.seq_length as u128;
    // Identities and targets of all micro-batches.
    let ids = 16 * s.all * settings.micro_batches as u128;
    let dropout = match &share.lora {
        Some(lora) if lora.dropout > 0.0 => {
            let widest = share.layers.iter().map(|layer| {
                let attention = layer.dims.q_heads * layer.dims.head_dim;
                layer.dims.intermediate.max(attention).max(share.hidden)
            });
            // Random numbers as they are made, as a tensor, in the kind of products, and times the input.
            s.all * widest.max().unwrap_or(0) as u128 * (4 + 4 + 2 * s.c)
        }
        _ => 0,
    };
    let live = most + tables + ids + dropout;
    Moment {
        activations: live + live * lost(place) / 100,
        logits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;
    use tandem_mesh::DeviceMesh;
    use tandem_model::{ModelConfig, ModuleTree};
    use tandem_parallel::{Plan, Precision, ShardingLevel};

    /// Of all that depends on the length of a row, only they grow faster than it.
    #[test]
    fn scores_that_no_kernel_bends_count_with_the_square_of_the_row() {
        let bytes = |architecture: &str, seq_length: usize, batch_size: usize| {
            let json = json!({"architectures": [architecture], "hidden_size": 64, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 100,
                "max_position_embeddings": 1 << 20});
            let config = ModelConfig::from_json(json.as_object().unwrap()).unwrap();
            let plan = Plan::declared(&ModuleTree::new(&config));
            let share = Share::new(&config, &plan, 1, false, None).unwrap();
            let settings = Settings {
                mesh: DeviceMesh::new(1, 1).unwrap(),
                level: ShardingLevel::Parameters,
                precision: Precision::bf16(),
                reshard_after_forward: true,
                sequence_parallel: false,
                recompute: Recompute::Light,
                seq_length,
                batch_size,
                micro_batches: 1,
                head_chunk_rows: 512,
            };
            // On CUDA no kernel knows a soft cap.
            fullest(&share, &settings, Place::Cuda).activations
        };
        // As many tokens, in one row or in four: four times as many scores, and one table of angles that is longer.
        let more = |architecture| bytes(architecture, 8192, 1) - bytes(architecture, 2048, 4);
        let scores = 5 * 4 * 4 * (8192 * 8192 - 4 * 2048 * 2048);
        let (capped, plain) = (more("Gemma2ForCausalLM"), more("LlamaForCausalLM"));
        assert!(plain < 1 << 20, "{plain}");
        let off = capped.abs_diff(scores);
        assert!(off < 1 << 20, "{capped} is not {scores}");
    }
}
