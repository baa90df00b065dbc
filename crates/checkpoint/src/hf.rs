//! Models in the Hugging Face layout: `model.safetensors`, or several files with `model.safetensors.index.json`.

mod error;
mod index;
mod naming;
mod single;
mod tensor_file;
mod tensor_list;
mod tensor_problem;
mod weights;
mod writer;

pub use error::WeightsError;
pub use single::{NamedTensor, SafetensorsWriter, write_safetensors};
pub use tensor_file::TensorFile;
pub use tensor_problem::TensorProblem;
pub use weights::HfWeights;
pub use writer::HfWriter;

/// The one file of a model that is not cut.
const SINGLE_FILE: &str = "model.safetensors";

/// Says which file holds which tensor.
const INDEX_FILE: &str = "model.safetensors.index.json";
