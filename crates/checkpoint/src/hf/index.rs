//! `model.safetensors.index.json`: which file holds which tensor.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tandem_files::read_small;

use super::WeightsError;
use crate::names::FileName;

/// What it may have: a line for each of a million tensors.
const MAX_BYTES: u64 = 128 << 20;

/// The index as it is in the file, where a file is named by `N`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Index<N = FileName> {
    /// `total_size` and whatever else its writer noted.
    #[serde(default)]
    pub metadata: BTreeMap<String, Value>,
    /// Tensor name to file name.
    pub weight_map: BTreeMap<String, N>,
}

impl Index {
    /// Reads `path` and refuses names that lead out of its folder.
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        let text = read_small(path, MAX_BYTES).map_err(|source| WeightsError::Io {
            action: "read",
            file: path.to_owned(),
            source,
        })?;
        let problem = |problem: String| WeightsError::Index {
            file: path.to_owned(),
            problem,
        };
        let index: Index<String> = serde_json::from_slice(&text)
            .map_err(|error| problem(format!("not an index: {error}")))?;
        if index.weight_map.is_empty() {
            return Err(problem("it names no tensor".to_owned()));
        }
        let named = index.weight_map.into_iter().map(|(tensor, file)| {
            let name = FileName::new(&file).map_err(|_| {
                problem(format!(
                    "tensor {tensor:?} is said to be in {file:?}, which is not the name of a file beside the index"
                ))
            })?;
            Ok((tensor, name))
        });
        Ok(Self {
            metadata: index.metadata,
            weight_map: named.collect::<Result<_, WeightsError>>()?,
        })
    }
}
