//! The files of a model.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use serde::Deserialize;
use tandem_files::read_small;

use super::error::HubError;
use super::snapshot::Snapshot;
use crate::limits::JSON_BYTES;
use crate::progress::Progress;

/// Small files that describe a model and its tokenizer; all but the first may be missing.
const DESCRIPTION: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

const SINGLE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether a model's weights are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// They are.
    Needed,
    /// They are not: training begins with random ones.
    NotNeeded,
}

/// What is needed of `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Brings what training needs of a model, and returns its folder.
pub(super) fn fetch(
    snapshot: Snapshot,
    weights: Weights,
    progress: &mut dyn Progress,
) -> Result<PathBuf, HubError> {
    if !snapshot.has(DESCRIPTION[0]) {
        return Err(missing(&snapshot, DESCRIPTION[0], |repo| {
            HubError::NotAModel {
                repo,
                file: DESCRIPTION[0],
            }
        }));
    }
    bring_description(&snapshot, progress)?;
    if weights == Weights::Needed {
        for file in weight_files(&snapshot, progress)? {
            snapshot.bring(&file, progress)?;
        }
    }
    snapshot.commit()
}

fn bring_description(snapshot: &Snapshot, progress: &mut dyn Progress) -> Result<(), HubError> {
    for file in DESCRIPTION {
        if snapshot.has(file) {
            snapshot.bring(file, progress)?;
        }
    }
    Ok(())
}

/// The files of the weights: those that the index names, so that a second copy in another layout is not downloaded too.
fn weight_files(
    snapshot: &Snapshot,
    progress: &mut dyn Progress,
) -> Result<BTreeSet<String>, HubError> {
    if snapshot.has(INDEX) {
        let path = snapshot.bring(INDEX, progress)?;
        let invalid = |reason: String| HubError::Index {
            repo: snapshot.name().into(),
            file: INDEX,
            reason,
        };
        let bytes = read_small(&path, JSON_BYTES).map_err(|error| invalid(error.to_string()))?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        let files: BTreeSet<String> = index.weight_map.into_values().collect();
        // These names become paths of the cache.
        let is_plain = |name: &str| !name.contains(['/', '\\']) && name.ends_with(".safetensors");
        if let Some(odd) = files.iter().find(|name| !is_plain(name)) {
            return Err(invalid(format!(
                "`{odd}` is not the name of a safetensors file"
            )));
        }
        return Ok(files);
    }
    if snapshot.has(SINGLE_FILE) {
        return Ok(BTreeSet::from([SINGLE_FILE.to_owned()]));
    }
    let is_weights = |name: &&String| !name.contains('/') && name.ends_with(".safetensors");
    let files: BTreeSet<String> = snapshot
        .files()
        .iter()
        .filter(is_weights)
        .cloned()
        .collect();
    if files.is_empty() {
        return Err(missing(snapshot, SINGLE_FILE, |repo| HubError::NoWeights {
            repo,
        }));
    }
    Ok(files)
}

/// What to say of a file that is not there: a cache may lack what the repository has.
fn missing(snapshot: &Snapshot, file: &str, error: impl Fn(String) -> HubError) -> HubError {
    let repo = snapshot.name().to_owned();
    if snapshot.is_cache_only() {
        let file = file.into();
        return HubError::FileNotCached { repo, file };
    }
    error(repo)
}
