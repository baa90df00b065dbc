//! What makes a run this run, for its checkpoints: the model, the data, the seed; and the flags that may change.

use tandem_checkpoint::{Digest, TrainState};
use tandem_model::{ModelConfig, ModuleTree};

use crate::prepare::Prepared;
use crate::resume::DATA_SIZE;
use crate::spec::RunSpec;

/// What a checkpoint's state says of the run itself (model, data, seed, settings), without how far it has come.
pub fn identity(spec: &RunSpec, prepared: &Prepared) -> TrainState {
    let engine = &spec.compute.engine;
    let selection = &spec.identity.selection;
    let (strategy, zero_stage) = engine.strategy.name();
    TrainState {
        strategy: strategy.to_owned(),
        tp_size: engine.mesh.tp_size(),
        dp_size: engine.mesh.dp_size(),
        zero_stage,
        model_fingerprint: model_fingerprint(&prepared.config, &prepared.tree),
        data_fingerprint: prepared.dataset.fingerprint(),
        seed: selection.seed,
        seq_length: selection.data.seq_length,
        settings: spec.settings(),
        extra: [(DATA_SIZE.to_owned(), prepared.data_size())].into(),
        ..TrainState::default()
    }
}

/// Two models with one fingerprint compute the same function of the same parameters.
fn model_fingerprint(config: &ModelConfig, tree: &ModuleTree) -> String {
    // Written out, so that it does not change with the types.
    let mut text = format!(
        "{:?} heads {} kv_heads {} head_dim {} eps {:e} tied {} rope {:?} window {:?}",
        config.architecture,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.rms_norm_eps,
        config.tie_word_embeddings,
        config.rope,
        config.sliding_window,
    );
    for spec in tree.parameters() {
        text.push_str(&format!("\n{} {:?}", spec.name, spec.shape));
    }
    format!("{}", Digest::of(text.as_bytes()))
}
