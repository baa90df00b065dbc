//! Where an experiment is kept: checkpoints in `--storage_path`, which may be object storage, and beside them, or in
//! `--local_path`, what needs a file system.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tandem_checkpoint::store::{Lost, WatchedStore, mark_folder};
use tandem_checkpoint::{Retention, RunDir, Store, local_path, open_store};
use tandem_launch::experiment;

use crate::environment::Environment;
use crate::failure::{Failure, Outcome};
use crate::ranks::Ranks;
use crate::spec::Output;

/// The storage path of who gives none, as Ray Train's examples have it.
pub const DEFAULT_PATH: &str = "/mnt/cluster_storage";

/// One experiment's places.
pub struct Storage {
    /// Its checkpoints.
    pub store: Arc<dyn Store>,
    /// Folder of logs, metrics, `run.json`.
    pub run_dir: PathBuf,
    /// The experiment's place in words, for messages.
    pub location: String,
    /// In a worker: notices when the run's folder is gone, or is another one under the same name.
    watch: Option<Arc<WatchedStore>>,
    /// Folders that were not there before, from the run's own upwards.
    new_folders: Vec<PathBuf>,
}

impl Storage {
    /// The places of the experiment `name`; the local folder is made and proven to be writable.
    pub fn open(output: &Output, environment: &Environment, name: &str) -> Outcome<Self> {
        let folder = output.local_folder();
        experiment::validate_name(name).map_err(|error| Failure::usage(error.to_string()))?;
        refuse_absent_default(&folder, Path::new(DEFAULT_PATH))?;
        let new_folders = absent(&folder.join(name));
        if !new_folders.is_empty()
            && !output.is_remote()
            && output.experiment.name.continued().is_some()
        {
            return Err(nothing_to_continue(
                name,
                &folder.join(name).display().to_string(),
            ));
        }
        let run_dir = experiment::create_run_dir(&folder, name)
            .map_err(|error| Failure::other(explained(output, &error)))?;
        Ok(Self {
            new_folders,
            ..Self::at(output, environment, run_dir)?
        })
    }

    /// Whether checkpoints and logs are in different places.
    pub fn is_remote(&self) -> bool {
        local_path(&self.location).is_none()
    }

    /// Removes the new folders again as far as they are empty: for a run that is refused.
    pub fn give_up(&self) {
        for folder in &self.new_folders {
            // Only an empty folder goes.
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }

    /// The places of the experiment `name`, of which none is made: looks whether they could be.
    pub fn probe(output: &Output, environment: &Environment, name: &str) -> Outcome<Self> {
        let folder = output.local_folder();
        experiment::validate_name(name).map_err(|error| Failure::usage(error.to_string()))?;
        refuse_absent_default(&folder, Path::new(DEFAULT_PATH))?;
        let run_dir = folder.join(name);
        let missing = absent(&run_dir);
        let above = missing.last().map_or(&*run_dir, |top| {
            let parent = top.parent().unwrap_or(top);
            // A relative path begins here.
            match parent.as_os_str().is_empty() {
                true => Path::new("."),
                false => parent,
            }
        });
        experiment::probe(&folder, above)
            .map_err(|error| Failure::usage(explained(output, &error)))?;
        Self::at(output, environment, run_dir)
    }

    /// The places of the experiment whose local folder is `run_dir`, which is there already.
    pub fn at(output: &Output, environment: &Environment, run_dir: PathBuf) -> Outcome<Self> {
        let location = match (output.is_remote(), run_dir.file_name()) {
            (true, Some(name)) => format!(
                "{}/{}",
                output.experiment.storage_path.trim_end_matches('/'),
                name.to_string_lossy()
            ),
            _ => run_dir.display().to_string(),
        };
        Ok(Self {
            store: open_store(&location, environment.variables()).map_err(Failure::other)?,
            run_dir,
            location,
            watch: None,
            new_folders: Vec::new(),
        })
    }

    /// From now on every save looks whether the run's folder is still the one it was, and goes to `--local_path` if not. Rank 0
    /// marks the folder, and all others prove that they see the same one.
    pub fn watched(self, output: &Output, ranks: &Ranks) -> Outcome<Self> {
        if output.is_remote() {
            return Ok(self);
        }
        let own = match ranks.everyone.rank() {
            0 => mark_folder(&self.run_dir).map_err(Failure::other)?,
            _ => String::new(),
        };
        let number = ranks.text_of_first(&own)?;
        let name = self.run_dir.file_name().unwrap_or_default();
        let refuge = std::path::absolute(output.local.local_path.join(name)).ok();
        let watch = WatchedStore::open(&self.run_dir, &number, refuge).map_err(Failure::other)?;
        let watch = Arc::new(watch);
        Ok(Self {
            store: Arc::clone(&watch) as Arc<dyn Store>,
            watch: Some(watch),
            ..self
        })
    }

    /// How the run's folder was lost; `None` as long as it is there.
    pub fn lost(&self) -> Option<&Lost> {
        self.watch.as_ref()?.lost()
    }

    /// Gives up a folder in which the last state cannot be saved, for the reason `why`: it goes to `--local_path` then. Says
    /// whether there is such a place; object storage has none.
    pub fn leave(&self, why: &str) -> bool {
        let Some(watch) = &self.watch else {
            return false;
        };
        watch.leave(format!("could not be written to: {why}"));
        true
    }

    /// The experiment's checkpoints.
    pub fn run(&self, retention: Retention) -> Outcome<RunDir> {
        RunDir::open(Arc::clone(&self.store), retention).map_err(Failure::other)
    }
}

impl Output {
    /// Where token caches and the folders of runs are: the storage path itself unless that is object storage.
    pub fn local_folder(&self) -> PathBuf {
        local_path(&self.experiment.storage_path)
            .map_or_else(|| self.local.local_path.clone(), Path::to_owned)
    }

    fn is_remote(&self) -> bool {
        local_path(&self.experiment.storage_path).is_none()
    }
}

/// The default is where a cluster mounts its shared storage. Where it is not, nobody wants a folder of this name: root could make
/// it, and others would be told that they may not.
fn refuse_absent_default(folder: &Path, default: &Path) -> Outcome<()> {
    if folder != default || folder.exists() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "the storage path {}, which is the default, does not exist; pass a folder for checkpoints and logs, such as --storage_path \
         ./runs, or mount the cluster's storage there",
        folder.display()
    )))
}

/// `folder` and those above it, as far as they are not there.
fn absent(folder: &Path) -> Vec<PathBuf> {
    let above = folder.ancestors();
    let missing = above.take_while(|path| !path.as_os_str().is_empty() && !path.exists());
    missing.map(Path::to_owned).collect()
}

/// The error of a run whose folder is gone. `saved` is whether the last step's state is in the refuge.
pub fn folder_lost(lost: &Lost, saved: bool) -> Failure {
    let Lost {
        root,
        problem,
        refuge,
    } = lost;
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let remedy = match refuge.as_ref().and_then(|refuge| refuge.parent()) {
        Some(folder) if saved => format!(
            "the state is saved in {folder}: --storage_path {folder} --resume_from {name} goes on from there",
            folder = folder.display()
        ),
        _ => "the state of the last steps could not be saved elsewhere (--local_path is for that); when the storage is back, \
              --resume_from goes on from the newest checkpoint in it"
            .to_owned(),
    };
    Failure::other(format!(
        "the run's folder {} {problem}; {remedy}",
        root.display()
    ))
}

/// The error of a run that is not there.
pub fn nothing_to_continue(name: &str, location: &str) -> Failure {
    Failure::usage(format!(
        "--resume_from {name}: there is no checkpoint in {location}; it takes the name of an experiment in --storage_path, the \
         folder of an experiment, or the folder of one of its checkpoints"
    ))
}

fn explained(output: &Output, error: &experiment::ExperimentError) -> String {
    if output.is_remote() {
        format!("--local_path: {error}")
    } else {
        error.to_string()
    }
}

/// As [`tandem_files::write_whole`], with an error that names the file.
pub fn write_whole(path: &Path, contents: &str) -> Outcome<()> {
    tandem_files::write_whole(path, contents.as_bytes())
        .map_err(|error| Failure::other(format!("cannot write {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_that_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let default = folder.path().join("cluster_storage");
        let failure = refuse_absent_default(&default, &default).unwrap_err();
        assert_eq!(failure.exit_code, 2);
        for word in ["does not exist", "--storage_path ./runs"] {
            assert!(failure.message.contains(word), "{}", failure.message);
        }
        let other = folder.path().join("mine");
        assert!(refuse_absent_default(&other, &default).is_ok());
        std::fs::create_dir(&default).unwrap();
        assert!(refuse_absent_default(&default, &default).is_ok());
    }

    #[test]
    fn folders_that_are_not_there_are_known_from_the_last_on() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("a/b"));
        assert_eq!(absent(&b), [b.clone(), a.clone()]);
        std::fs::create_dir(&a).unwrap();
        assert_eq!(absent(&b), [b]);
        assert!(absent(&a).is_empty());
    }
}
