//! Tensors to and from files, by slices.
//!
//! Everything here works on plain `&[f32]` and bytes, and knows which part of a tensor is meant from a
//! [`ShardSlice`](tandem_mesh::ShardSlice). It knows no strategy, no process group and no tensor library: whatever one
//! strategy writes, any other can read.
//!
//! [`HfWeights`] reads the weights of a Hugging Face model, and [`HfWriter`] writes such a model;
//! [`write_safetensors`] writes one file.

mod durable;
mod element;
mod header;
mod hf;
mod read_plan;
mod tensor_file;

pub use element::FloatKind;
pub use header::{Entry, Header, HeaderError};
pub use hf::{HfWeights, HfWriter, NamedTensor, TensorProblem, WeightsError, write_safetensors};
pub use safetensors::Dtype;
pub use tensor_file::TensorFile;

// Elements are copied between files and memory without swapping bytes; safetensors is little-endian.
#[cfg(target_endian = "big")]
compile_error!("tandem-checkpoint supports little-endian machines only");
