//! Models in the Hugging Face layout: `model.safetensors`, or several files with `model.safetensors.index.json`.

mod error;
mod index;
mod naming;
mod tensor_list;
mod weights;
mod writer;

pub use error::WeightsError;
pub use tensor_list::TensorProblem;
pub use weights::HfWeights;
pub use writer::{HfWriter, NamedTensor, write_safetensors};

/// The one file of a model that is not cut.
const SINGLE_FILE: &str = "model.safetensors";

/// Says which file holds which tensor.
const INDEX_FILE: &str = "model.safetensors.index.json";
