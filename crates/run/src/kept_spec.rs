//! `run_config.json`, the spec of a run in its folder: written by whoever starts it, read by whoever continues it.

use tandem_checkpoint::store::PutMode;
use tandem_checkpoint::{Store, local_path, open_store};
use tandem_launch::output::redacted;

use crate::environment::Environment;
use crate::failure::{Failure, Outcome};
use crate::spec::{Experiment, RunSpec};
use crate::storage::{Storage, nothing_to_continue, write_whole};

/// Its name.
const FILE: &str = "run_config.json";

/// The most that it may have.
const MAX_BYTES: u64 = 1 << 20;

/// What is kept of a run's spec.
#[derive(Debug)]
pub struct Kept {
    /// The file, or where it would be.
    pub location: String,
    /// What is in it; `None` where it is absent.
    pub text: Option<String>,
}

/// The spec of the experiment that goes on.
///
/// # Errors
/// Wrong usage: there is no such experiment. The file cannot be read.
pub fn read(experiment: &Experiment, environment: &Environment) -> Outcome<Kept> {
    let name = experiment.name.given().unwrap_or_default();
    let storage = experiment.storage_path.trim_end_matches('/');
    let folder = format!("{storage}/{name}");
    if local_path(&folder).is_some_and(|path| !path.is_dir()) {
        return Err(nothing_to_continue(name, &folder));
    }
    let store = open_store(&folder, environment.variables()).map_err(Failure::other)?;
    let location = store.locate(FILE);
    let text = match store.read_limited(FILE, MAX_BYTES) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(Failure::other(error)),
    };
    Ok(Kept { location, text })
}

/// Writes the spec, with paths that mean the same from any folder, beside the logs and, where that is another place, beside the
/// checkpoints.
pub fn write(spec: &RunSpec, name: &str, storage: &Storage) -> Outcome<()> {
    let spec = spec.clone().for_other_folders(name, None)?;
    let text = serde_json::to_string_pretty(&spec).map_err(Failure::other)?;
    let text = redacted(&text);
    write_whole(&storage.run_dir.join(FILE), &text)?;
    if storage.is_remote() {
        put(storage.store.as_ref(), &text)?;
    }
    Ok(())
}

fn put(store: &dyn Store, text: &str) -> Outcome<()> {
    store
        .put(FILE, text.as_bytes(), PutMode::Replace)
        .map_err(Failure::other)
}
