//! Useful matrix arithmetic of a step.

use tandem_model::{ModelConfig, Module, ModuleKind, ModuleTree};

/// Floating point operations of forward and backward over `tokens` tokens in rows of `seq`, the whole mesh together:
/// `6 N + 12 L H Q T` a token, as PaLM counts them (arXiv 2204.02311, appendix B), and torchtitan and Megatron-LM after it: six
/// per weight of a matrix product, and attention's two products with every position of the row, masked or not.
/// Recomputation does not count: it is not useful.
///
/// A frozen model below `adapters` has no gradients of weights, a third of these operations; its adapters have theirs besides.
pub fn per_step(
    config: &ModelConfig,
    tree: &ModuleTree,
    adapters: Option<&ModuleTree>,
    tokens: u64,
    seq: u64,
) -> f64 {
    // Of a mixture's experts, those that a token goes to.
    let (top_k, experts) = match &config.experts {
        Some(experts) => (experts.rule.top_k as u64, experts.rule.experts as u64),
        None => (1, 1),
    };
    let weights: u64 = tree
        .modules()
        .map(|module| match module.kind {
            ModuleKind::Linear { inputs, outputs } if module.cut.is_of_expert() => {
                (inputs * outputs) as u64 * top_k / experts
            }
            ModuleKind::Linear { inputs, outputs } => (inputs * outputs) as u64,
            // A tied table is also the head's matrix.
            ModuleKind::Embedding { rows, features } if config.tie_word_embeddings => {
                (rows * features) as u64
            }
            ModuleKind::Embedding { .. }
            | ModuleKind::Norm { .. }
            | ModuleKind::HeadNorm { .. } => 0,
        })
        .sum();
    let width = (config.num_heads * config.head_dim) as f64;
    let attention = 12.0 * width * seq as f64 * config.num_layers as f64;
    let of_adapter = |module: &Module| match module.kind {
        ModuleKind::Linear { inputs, outputs } => (inputs * outputs) as f64,
        _ => 0.0,
    };
    let of_weights = match adapters {
        None => 6.0 * weights as f64,
        Some(tree) => 4.0 * weights as f64 + 6.0 * tree.modules().map(of_adapter).sum::<f64>(),
    };
    tokens as f64 * (of_weights + attention)
}
