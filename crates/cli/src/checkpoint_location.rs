//! From what a person calls a checkpoint to an open one.

use std::sync::Arc;

use tandem_checkpoint::{ModelFile, Reader, Retention, RunDir, Store, open_store};

use crate::failure::{Failure, Outcome};

/// Folders of checkpoints begin with this.
const PREFIX: &str = "checkpoint_";

/// Opens the checkpoint at `location` (a folder, or a URL in object storage); of an experiment's folder, the newest.
pub fn open(location: &str) -> Outcome<Reader> {
    let (store, folder) = split(location)?;
    if let Some(folder) = folder {
        return Reader::open(store, &folder).map_err(Failure::other);
    }
    let run = RunDir::open(store, Retention::default()).map_err(Failure::other)?;
    let Some(latest) = run.latest() else {
        return Err(Failure::other(format!(
            "there is no checkpoint in {location}; give the folder of an experiment, or of a checkpoint (checkpoint_...) in one"
        )));
    };
    run.reader(&latest.name).map_err(Failure::other)
}

/// Config and tokenizer of the model, which are kept with the experiment.
pub fn model_files(location: &str) -> Outcome<Vec<ModelFile>> {
    let (store, _) = split(location)?;
    let run = RunDir::open(store, Retention::default()).map_err(Failure::other)?;
    run.model_files().map_err(Failure::other)
}

/// The experiment's store, and the checkpoint's folder in it where `location` names one.
fn split(location: &str) -> Outcome<(Arc<dyn Store>, Option<String>)> {
    let trimmed = location.trim_end_matches('/');
    let (parent, name) = match trimmed.rsplit_once('/') {
        Some((parent, name)) => (parent, name),
        None => (".", trimmed),
    };
    let open = |place: &str| open_store(place, std::env::vars()).map_err(Failure::other);
    if name.starts_with(PREFIX) {
        return Ok((open(parent)?, Some(name.to_owned())));
    }
    Ok((open(trimmed)?, None))
}
