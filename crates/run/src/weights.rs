//! Pretrained weights as a source for the engine.

use tandem_checkpoint::HfWeights;
use tandem_mesh::ShardSlice;
use tandem_model::{ModelConfig, ModuleTree, ParamSpec};
use tandem_parallel::WeightSource;

use crate::failure::{Failure, Outcome};

/// A folder of safetensors whose tensors were checked against the model.
pub struct HfSource<'a> {
    weights: &'a HfWeights,
}

impl<'a> HfSource<'a> {
    /// Checks names and shapes first: what is missing, extra or mis-shaped is said at once.
    pub fn checked(
        weights: &'a HfWeights,
        config: &ModelConfig,
        tree: &ModuleTree,
    ) -> Outcome<Self> {
        let expected: Vec<(String, Vec<usize>)> = tree
            .parameters()
            .map(|spec| (spec.name.clone(), spec.shape.clone()))
            .collect();
        weights
            .expect(&expected, &|name| is_ignorable(name, config))
            .map_err(Failure::other)?;
        Ok(Self { weights })
    }
}

impl WeightSource for HfSource<'_> {
    fn read(
        &self,
        param: &ParamSpec,
        slice: &ShardSlice,
        out: &mut [f32],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.weights.read(&param.name, slice, out)?)
    }
}

/// Tensors that published models carry although they are not parameters of this model: a tied head's copy, buffers of
/// old versions, and layers behind the ones that are kept (`--num_layers`).
fn is_ignorable(name: &str, config: &ModelConfig) -> bool {
    if name == "lm_head.weight" {
        return config.tie_word_embeddings;
    }
    if name.ends_with("rotary_emb.inv_freq") {
        return true;
    }
    name.strip_prefix("model.layers.")
        .and_then(|rest| rest.split('.').next())
        .and_then(|layer| layer.parse::<usize>().ok())
        .is_some_and(|layer| layer >= config.num_layers)
}
