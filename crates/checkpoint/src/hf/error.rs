//! What can be wrong with a model's weights.

use std::io;
use std::path::PathBuf;

use safetensors::Dtype;
use thiserror::Error;

use super::tensor_problem::{TensorProblem, beside, list_of};
use crate::header::HeaderError;

/// Weights that cannot be read or written. Every message names the file, and the tensor where there is one.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The operating system said no.
    #[error("cannot {action} {}: {source}", file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        file: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// A tensor's bytes could not be read.
    #[error("{}: cannot read tensor {tensor:?}: {source}", file.display())]
    ReadTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        source: io::Error,
    },
    /// A file's header does not add up.
    #[error("{}: {problem}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: HeaderError,
    },
    /// The folder holds no weights.
    #[error("{} holds neither model.safetensors nor model.safetensors.index.json{hint}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What to do, where that can be guessed.
        hint: &'static str,
    },
    /// The index is not what it should be.
    #[error("{}: {problem}", file.display())]
    Index {
        /// The index.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The index names a file that is not there.
    #[error("{} says that tensor {tensor:?} is in {file}, which is not there: the download may be incomplete", index.display())]
    IndexedFileMissing {
        /// The index.
        index: PathBuf,
        /// The file that it names.
        file: String,
        /// A tensor that should be in it.
        tensor: String,
    },
    /// The index names a file that lacks the tensor.
    #[error("{} says that tensor {tensor:?} is in {file}, but that file does not have it", index.display())]
    IndexedTensorMissing {
        /// The index.
        index: PathBuf,
        /// The file that it names.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// Two files hold a tensor of one name.
    #[error("tensor {tensor:?} is both in {} and in {}", first.display(), second.display())]
    InTwoFiles {
        /// The tensor.
        tensor: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// No tensor of this name.
    #[error("{}: there is no tensor {tensor:?}", file.display())]
    NoSuchTensor {
        /// The file or folder that was asked.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Names or shapes are not those of the model.
    #[error("the weights in {} are not those of this model{}:{}",
        folder.display(), beside(others), list_of(problems, *unlisted))]
    NotTheModel {
        /// The folder.
        folder: PathBuf,
        /// The first problems.
        problems: Vec<TensorProblem>,
        /// How many more there are.
        unlisted: usize,
        /// Tensors that are there besides and that nothing uses.
        others: Vec<String>,
    },
    /// There is more than one model of this kind.
    #[error("{} holds more than one model that fits, with the prefixes {}: make a file of the one that is meant",
        folder.display(), prefixes.join(" and "))]
    TwoModels {
        /// The folder.
        folder: PathBuf,
        /// What the names of each begin with.
        prefixes: Vec<String>,
    },
    /// A tensor has another shape than is asked for.
    #[error("{}: tensor {tensor:?} has shape {found:?}, not {expected:?}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that is needed.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has elements of a kind that is not understood here.
    #[error("{}: tensor {tensor:?} is of kind {found}, not {wanted}", file.display())]
    Kind {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its kind.
        found: Dtype,
        /// The kinds that are understood.
        wanted: &'static str,
    },
    /// Something is in the way of the output.
    #[error("{} is there already and is not an empty folder: choose another output, or remove it", folder.display())]
    OutputExists {
        /// The folder.
        folder: PathBuf,
    },
    /// The tensors that were written are not those that were announced.
    #[error("{}: {problem}", folder.display())]
    Unannounced {
        /// The output folder.
        folder: PathBuf,
        /// Which tensor, and what about it.
        problem: String,
    },
    /// Whoever provides the tensors for writing failed.
    #[error("cannot provide tensor {tensor:?}: {source}")]
    Source {
        /// The tensor.
        tensor: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
