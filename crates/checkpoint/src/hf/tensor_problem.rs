//! How a tensor can differ from what a model needs, in words.

use std::fmt;
use std::path::PathBuf;

/// A way in which one tensor is not what the model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TensorProblem {
    /// The model needs it and it is not there.
    Missing {
        /// The tensor.
        tensor: String,
        /// The shape that it should have.
        shape: Vec<usize>,
    },
    /// It is there and the model has no use for it.
    Extra {
        /// The tensor.
        tensor: String,
        /// Where it is.
        file: PathBuf,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// It has another shape.
    Shape {
        /// The tensor.
        tensor: String,
        /// Where it is.
        file: PathBuf,
        /// The shape that it should have.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { tensor, shape } => {
                write!(f, "{tensor} of shape {shape:?} is missing")
            }
            Self::Extra {
                tensor,
                file,
                shape,
            } => write!(
                f,
                "{tensor} of shape {shape:?} in {} has no place in the model",
                file.display()
            ),
            Self::Shape {
                tensor,
                file,
                expected,
                found,
            } => write!(
                f,
                "{tensor} in {} has shape {found:?}, the model's has {expected:?}",
                file.display()
            ),
        }
    }
}

/// One problem a line.
pub(super) fn list_of(problems: &[TensorProblem], unlisted: usize) -> String {
    let mut list: String = problems
        .iter()
        .map(|problem| format!("\n  {problem}"))
        .collect();
    if unlisted > 0 {
        list.push_str(&format!("\n  and {unlisted} more"));
    }
    list
}

/// What is there and has no part in the comparison, which may be what is missing, by another name.
pub(super) fn beside(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let listed = names.iter().take(SHOWN).map(String::as_str);
    let listed = listed.collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => String::new(),
        1..=SHOWN => format!(" (it also has {listed})"),
        more => format!(" (it also has {listed} and {} more)", more - SHOWN),
    }
}
