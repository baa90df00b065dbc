//! From what a person calls a checkpoint to an open one.

use std::sync::Arc;

use tandem_checkpoint::{
    CHECKPOINT_PREFIX, ModelFile, Reader, Retention, RunDir, Store, local_path, model_files,
    open_store,
};
use tandem_launch::controller::RunStatus;
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};

/// An open checkpoint, and the experiment that it is of.
pub struct Located {
    /// The checkpoint.
    pub reader: Reader,
    store: Arc<dyn Store>,
    /// The experiment's folder or URL.
    place: String,
}

impl Located {
    /// Opens the checkpoint at `location` (a folder, or a URL in object storage); of an experiment's folder, the newest.
    pub fn open(location: &str, environment: &Environment) -> Outcome<Self> {
        let trimmed = location.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or((".", trimmed));
        let open = |place: &str| open_store(place, environment.variables()).map_err(Failure::other);
        if name.starts_with(CHECKPOINT_PREFIX) {
            let store = open(parent)?;
            let reader = Reader::open(store.clone(), name).map_err(Failure::other)?;
            return Ok(Self {
                reader,
                store,
                place: parent.to_owned(),
            });
        }
        let store = open(trimmed)?;
        let run = RunDir::open(store.clone(), Retention::default()).map_err(Failure::other)?;
        let Some(latest) = run.latest() else {
            return Err(Failure::other(format!(
                "there is no checkpoint in {location}; give the folder of an experiment, or of a checkpoint (checkpoint_...) in one"
            )));
        };
        let reader = run.reader(&latest.name).map_err(Failure::other)?;
        Ok(Self {
            reader,
            store,
            place: trimmed.to_owned(),
        })
    }

    /// What the run does, where its controller has left word beside the checkpoint.
    pub fn run_status(&self) -> Option<RunStatus> {
        RunStatus::of(local_path(&self.place)?)
    }

    /// Config and tokenizer of the model, which are kept with the experiment.
    pub fn model_files(&self) -> Outcome<Vec<ModelFile>> {
        model_files(self.store.as_ref()).map_err(Failure::other)
    }
}
