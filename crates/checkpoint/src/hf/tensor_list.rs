//! Comparing the tensors that are there with those that a model needs.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use super::{HfWeights, WeightsError};

/// A message with more lines than this is not read.
const MAX_LISTED: usize = 20;

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

/// Checks that `weights` are exactly the tensors `expected`, but for those that `ignorable` names, and returns these.
pub(super) fn compare(
    weights: &HfWeights,
    expected: &[(String, Vec<usize>)],
    ignorable: &dyn Fn(&str) -> bool,
) -> Result<Vec<String>, WeightsError> {
    let mut problems = Vec::new();
    for (tensor, shape) in expected {
        match weights.locate(tensor) {
            Err(_) => problems.push(TensorProblem::Missing {
                tensor: tensor.clone(),
                shape: shape.clone(),
            }),
            Ok((file, entry)) if entry.shape != *shape => problems.push(TensorProblem::Shape {
                tensor: tensor.clone(),
                file: file.path().to_owned(),
                expected: shape.clone(),
                found: entry.shape.clone(),
            }),
            Ok(_) => {}
        }
    }
    let needed: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let mut ignored = Vec::new();
    for (name, file, entry) in weights.entries() {
        if needed.contains(name) {
            continue;
        }
        if ignorable(name) {
            ignored.push(name.to_owned());
            continue;
        }
        problems.push(TensorProblem::Extra {
            tensor: entry.name.clone(),
            file: file.path().to_owned(),
            shape: entry.shape.clone(),
        });
    }
    if problems.is_empty() {
        return Ok(ignored);
    }
    let unlisted = problems.len().saturating_sub(MAX_LISTED);
    problems.truncate(MAX_LISTED);
    Err(WeightsError::NotTheModel {
        folder: weights.folder().to_owned(),
        problems,
        unlisted,
        others: ignored,
    })
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
