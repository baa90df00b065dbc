//! Comparing the tensors that are there with those that a model needs.

use std::collections::HashSet;

use super::tensor_problem::TensorProblem;
use super::{HfWeights, WeightsError};

/// A message with more lines than this is not read.
const MAX_LISTED: usize = 20;

impl HfWeights {
    /// Checks that the tensors are exactly `expected` (name and shape), but for extra ones that `ignorable` names. Returns
    /// those, in the order of their bytes.
    ///
    /// # Errors
    /// [`WeightsError::NotTheModel`] with all that is missing, extra or mis-shaped.
    pub fn expect(
        &self,
        expected: &[(String, Vec<usize>)],
        ignorable: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<String>, WeightsError> {
        let mut problems = Vec::new();
        for (tensor, shape) in expected {
            match self.locate(tensor) {
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
        for (name, file, entry) in self.entries() {
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
            folder: self.folder().to_owned(),
            problems,
            unlisted,
            others: ignored,
        })
    }
}
