//! Where an experiment is kept: checkpoints in `--storage_path`, which may be object storage, and beside them, or in
//! `--local_path`, what needs a file system.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tandem_checkpoint::{Retention, RunDir, Store, local_path, open_store};
use tandem_launch::experiment;

use crate::args::CommonArgs;
use crate::failure::{Failure, Outcome};

/// One experiment's places.
pub struct Storage {
    /// Its checkpoints.
    pub store: Arc<dyn Store>,
    /// Folder of logs, metrics, `run.json`.
    pub run_dir: PathBuf,
    /// How a person would name it.
    pub location: String,
}

impl Storage {
    /// The places of the experiment `name`; the local folder is made and proven to be writable.
    pub fn open(common: &CommonArgs, name: &str) -> Outcome<Self> {
        let run_dir = experiment::create_run_dir(&local_folder(common), name)
            .map_err(|error| Failure::other(explained(common, &error)))?;
        Self::at(common, run_dir)
    }

    /// The places of the experiment whose local folder is `run_dir`, which is there already.
    pub fn at(common: &CommonArgs, run_dir: PathBuf) -> Outcome<Self> {
        let location = match (is_remote(common), run_dir.file_name()) {
            (true, Some(name)) => format!(
                "{}/{}",
                common.storage_path.trim_end_matches('/'),
                name.to_string_lossy()
            ),
            _ => run_dir.display().to_string(),
        };
        Ok(Self {
            store: open_store(&location, std::env::vars()).map_err(Failure::other)?,
            run_dir,
            location,
        })
    }

    /// The experiment's checkpoints.
    pub fn run(&self, retention: Retention) -> Outcome<RunDir> {
        RunDir::open(Arc::clone(&self.store), retention).map_err(Failure::other)
    }
}

/// Where token caches and the folders of runs are: the storage path itself unless that is object storage.
pub fn local_folder(common: &CommonArgs) -> PathBuf {
    local_path(&common.storage_path).map_or_else(|| common.local_path.clone(), Path::to_owned)
}

fn is_remote(common: &CommonArgs) -> bool {
    local_path(&common.storage_path).is_none()
}

fn explained(common: &CommonArgs, error: &experiment::ExperimentError) -> String {
    if is_remote(common) {
        format!("--local_path: {error}")
    } else {
        error.to_string()
    }
}
