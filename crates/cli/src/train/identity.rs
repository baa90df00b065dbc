//! What makes a run this run, for its checkpoints: the model, the data, the seed; and the flags that may change.

use std::collections::BTreeMap;

use serde_json::Value;
use tandem_checkpoint::{Digest, TrainState};
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree};

use crate::cluster_args::STARTING;
use crate::prepare::Prepared;
use crate::request::Request;

/// Flags that say where a run is or how it is cut, which changes nothing of what it computes, or that the state names
/// itself.
const NOT_SETTINGS: [&str; 15] = [
    "dp_size",
    "experiment_name",
    "local_path",
    "loss_output_dir",
    "model_name",
    "network_interface",
    "num_workers",
    "resume_fallback",
    "resume_from",
    "seed",
    "seq_length",
    "storage_path",
    "tp_size",
    "transport",
    "zero_stage",
];

/// Everything of a checkpoint's state that is no progress.
pub fn identity(request: &Request, mesh: DeviceMesh, prepared: &Prepared) -> TrainState {
    let common = request.common();
    let (strategy, zero_stage) = request.strategy_name();
    TrainState {
        strategy: strategy.to_owned(),
        tp_size: mesh.tp_size(),
        dp_size: mesh.dp_size(),
        zero_stage,
        model_fingerprint: model_fingerprint(&prepared.config, &prepared.tree),
        data_fingerprint: prepared.dataset.fingerprint(),
        seed: common.seed,
        seq_length: common.seq_length,
        settings: settings(request),
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

fn settings(request: &Request) -> BTreeMap<String, Value> {
    let flags = match request.to_json().get_mut("flags").map(Value::take) {
        Some(Value::Object(flags)) => flags,
        _ => unreachable!("flags are an object"),
    };
    flags
        .into_iter()
        .filter(|(name, _)| {
            let counts = |names: &[&str]| !names.contains(&name.as_str());
            counts(&NOT_SETTINGS) && counts(&STARTING)
        })
        .collect()
}
