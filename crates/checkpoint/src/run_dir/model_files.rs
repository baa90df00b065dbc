//! The files of the model (config.json, the tokenizer's) that are kept with an experiment.

use super::RunDir;
use crate::error::CheckpointError;
use crate::export::ModelFile;
use crate::store::{PutMode, Store, join};

/// Config and tokenizer of the model are kept here, so that a checkpoint can be exported without the model's origin.
const MODEL_FOLDER: &str = "model";

impl RunDir {
    /// Keeps a file of the model (config.json, the tokenizer's) with the experiment.
    ///
    /// # Errors
    /// The store refuses, or the folder of these files is a link.
    pub fn put_model_file(&self, file: &ModelFile) -> Result<(), CheckpointError> {
        refuse_link(self.store.as_ref(), "", MODEL_FOLDER)?;
        let path = join(MODEL_FOLDER, &file.name);
        Ok(self.store.put(&path, &file.bytes, PutMode::Replace)?)
    }

    /// The files of the model that were kept.
    ///
    /// # Errors
    /// The store refuses.
    pub fn model_files(&self) -> Result<Vec<ModelFile>, CheckpointError> {
        model_files(self.store.as_ref())
    }
}

/// The files of the model that were kept at the root of `store`, without a look at the checkpoints.
///
/// # Errors
/// The store refuses, or there is a link to elsewhere among them.
pub fn model_files(store: &dyn Store) -> Result<Vec<ModelFile>, CheckpointError> {
    refuse_link(store, "", MODEL_FOLDER)?;
    let listed = store.list(MODEL_FOLDER)?;
    let files = listed.into_iter().filter(|listed| listed.size.is_some());
    files
        .map(|file| {
            if file.is_link {
                return Err(link(store, MODEL_FOLDER, &file.name));
            }
            let bytes = store.read(&join(MODEL_FOLDER, &file.name))?;
            Ok(ModelFile {
                name: file.name,
                bytes,
            })
        })
        .collect()
}

fn refuse_link(store: &dyn Store, folder: &str, name: &str) -> Result<(), CheckpointError> {
    let listed = store.list(folder)?;
    if listed.iter().any(|l| l.name == name && l.is_link) {
        return Err(link(store, folder, name));
    }
    Ok(())
}

fn link(store: &dyn Store, folder: &str, name: &str) -> CheckpointError {
    CheckpointError::Link {
        location: store.locate(&join(folder, name)),
    }
}
