//! What makes a run this run, for its checkpoints: the model, the data, the seed; and the flags that may change.

use std::collections::BTreeMap;

use tandem_checkpoint::{Digest, TrainState};
use tandem_model::{ModelConfig, ModuleTree};

use crate::adapter;
use crate::failure::Outcome;
use crate::prepare::Prepared;
use crate::resume::DATA_SIZE;
use crate::spec::RunSpec;

/// What a checkpoint's state says of the run itself (model, data, seed, settings), without how far it has come.
///
/// # Errors
/// The weights below adapters cannot be read.
pub fn identity(spec: &RunSpec, prepared: &Prepared) -> Outcome<TrainState> {
    let engine = &spec.compute.engine;
    let selection = &spec.identity.selection;
    let (strategy, zero_stage) = engine.strategy.name();
    let mut extra = BTreeMap::from([(DATA_SIZE.to_owned(), prepared.data_size())]);
    if let Some(adapter) = &prepared.model.adapter {
        let described = adapter::described(
            &adapter.lora,
            &spec.identity.model_name,
            prepared.model.pretrained.as_ref(),
            selection.seed,
            &prepared.model.config,
        )?;
        extra.insert(adapter::LORA.to_owned(), described);
    }
    Ok(TrainState {
        strategy: strategy.to_owned(),
        tp_size: engine.mesh.tp_size(),
        dp_size: engine.mesh.dp_size(),
        zero_stage,
        model_fingerprint: model_fingerprint(&prepared.model.config, &prepared.model.tree),
        data_fingerprint: prepared.dataset.fingerprint(),
        seed: selection.seed,
        seq_length: selection.data.seq_length,
        settings: spec.settings(),
        extra: extra.into_iter().collect(),
        ..TrainState::default()
    })
}

/// The position embedding of the layers: one of all, or a list.
fn ropes(config: &ModelConfig) -> String {
    let first = config.rope.first().and_then(Option::as_ref);
    match first {
        Some(first) if config.rope.iter().all(|rope| rope.as_ref() == Some(first)) => {
            format!("{first:?}")
        }
        _ => format!("{:?}", config.rope),
    }
}

/// Two models with one fingerprint compute the same function of the same parameters.
fn model_fingerprint(config: &ModelConfig, tree: &ModuleTree) -> String {
    // Written out, so that it does not change with the types.
    let mut text = format!(
        "{} heads {} kv_heads {} head_dim {} eps {:e} tied {} rope {} window {:?}",
        config.family,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.norm.eps,
        config.tie_word_embeddings,
        ropes(config),
        config.sliding_window,
    );
    // What not every family has comes behind, so that runs from before there were such families go on.
    let mut also = |what: &str, value: String, usual: String| {
        if value != usual {
            text.push_str(&format!(" {what} {value}"));
        }
    };
    let head_dim = config.head_dim as f64;
    let number = |value: f64| format!("{value:e}");
    also(
        "activation",
        format!("{:?}", config.activation),
        "Silu".to_owned(),
    );
    also(
        "scale",
        number(config.attention_scale),
        number(1.0 / head_dim.sqrt()),
    );
    let caps = [config.attention_soft_cap, config.logits_soft_cap];
    also("caps", format!("{caps:?}"), "[None, None]".to_owned());
    also(
        "rotary_dim",
        config.rotary_dim.to_string(),
        config.head_dim.to_string(),
    );
    let factors = [
        config.embedding_scale.factor,
        config.residual_scale,
        config.logits_scale,
    ];
    also(
        "factors",
        format!("{factors:?}"),
        "[1.0, 1.0, 1.0]".to_owned(),
    );
    for spec in tree.parameters() {
        text.push_str(&format!("\n{} {:?}", spec.name, spec.shape));
    }
    format!("{}", Digest::of(text.as_bytes()))
}
