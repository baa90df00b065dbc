//! Pretrained weights as a source for the engine.

mod quantised;
mod unused;

use std::path::Path;

use tandem_checkpoint::{HfWeights, WeightsError};
use tandem_mesh::ShardSlice;
use tandem_model::{ModelConfig, ModuleTree, ParamSpec};
use tandem_parallel::WeightSource;

use crate::failure::{Failure, Outcome};

/// The embedding, which is also the head where that is tied.
const TABLE: &str = "model.embed_tokens.weight";

/// A head of its own.
const HEAD: &str = "lm_head.weight";

/// The weights of a folder, whose headers were held against the config.
#[derive(Debug)]
pub struct Pretrained {
    /// The tensors, by the names of the model.
    pub weights: HfWeights,
    /// The config as the files have it: a model whose head is a tensor of its own is not tied, whatever config.json says.
    pub config: ModelConfig,
    /// A line for each thing in the files that is not as the config says.
    pub notes: Vec<String>,
}

impl Pretrained {
    /// Opens the weights in `folder` and says what of them is missing, mis-shaped, superfluous or called otherwise.
    ///
    /// # Errors
    /// They are not those of the model that `config` describes, or are quantised.
    pub fn open(folder: &Path, mut config: ModelConfig) -> Outcome<Self> {
        let mut weights = HfWeights::open(folder).map_err(|error| match error {
            WeightsError::NoWeights { hint: "", .. } => {
                Failure::other(format!("{error}; --init random begins with new weights"))
            }
            other => Failure::other(other),
        })?;
        let mut notes = Vec::new();
        let tensors = expected(&ModuleTree::new(&config));
        let fit = weights
            .fit_names(&tensors, (TABLE, HEAD))
            .map_err(Failure::other)?;
        notes.extend(fit);
        if let Some(how) = quantised::how(&weights) {
            return Err(Failure::other(format!(
                "the weights in {} are quantised ({how}), convert it first: train the model that it was made from, or load \
                 it with transformers, dequantize() it and save it",
                folder.display()
            )));
        }
        if config.tie_word_embeddings && weights.has(HEAD) {
            if !weights.has(TABLE) {
                weights.rename(HEAD, TABLE);
            } else if !weights.are_equal(TABLE, HEAD).map_err(Failure::other)? {
                // As transformers decides it.
                config.tie_word_embeddings = false;
                notes.push(format!(
                    "config.json ties the head to the embedding, but {HEAD} and {TABLE} differ: they are NOT tied"
                ));
            }
        }
        let tree = ModuleTree::new(&config);
        let tensors = expected(&tree);
        let is_ignorable = |name: &str| unused::is_ignorable(name, &config, &tree);
        let ignored = weights
            .expect(&tensors, &is_ignorable)
            .map_err(Failure::other)?;
        notes.extend(unused::line(&ignored));
        Ok(Self {
            weights,
            config,
            notes,
        })
    }
}

/// Names and shapes.
pub(crate) fn expected(tree: &ModuleTree) -> Vec<(String, Vec<usize>)> {
    let named = |spec: &ParamSpec| (spec.name.clone(), spec.shape.clone());
    tree.parameters().map(named).collect()
}

impl WeightSource for Pretrained {
    fn read(
        &self,
        param: &ParamSpec,
        slice: &ShardSlice,
        out: &mut [f32],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.weights.read(&param.name, slice, out)?)
    }
}
