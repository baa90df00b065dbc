//! What `--resume_from` means: the name of an experiment, its folder, or the folder of one of its checkpoints.

use std::path::{Path, PathBuf};

use tandem_checkpoint::{CheckpointName, local_path};

use crate::failure::{Failure, Outcome};
use crate::spec::{Experiment, Name};

impl Experiment {
    /// The experiment that goes on: the one of the name `resume_from` in `storage_path`; or, where it is a path or a URL,
    /// the one there.
    ///
    /// # Errors
    /// Wrong usage: a folder that is not there, or that cannot be a run's.
    pub fn continued(storage_path: String, resume_from: &str) -> Outcome<Self> {
        let is_here = Path::new(resume_from).join("commit.json").is_file();
        let is_path = resume_from.contains('/') || matches!(resume_from, "." | "..") || is_here;
        if !is_path {
            return Ok(Self {
                storage_path,
                name: Name::Continued(resume_from.to_owned()),
                checkpoint: None,
            });
        }
        let explained = |problem: &str| {
            Failure::usage(format!(
                "--resume_from {resume_from}: {problem}; it takes the name of an experiment in --storage_path ({storage_path}), \
                 the folder of an experiment, or the folder of one of its checkpoints (checkpoint_...)"
            ))
        };
        let whole = match local_path(resume_from) {
            None => resume_from.trim_end_matches('/').to_owned(),
            // A link to a run, or to a checkpoint in one, means the run.
            Some(path) => match path.canonicalize() {
                Ok(found) if found.is_dir() => {
                    text(found).ok_or_else(|| explained("the path is not Unicode"))?
                }
                Ok(_) => return Err(explained("that is no folder")),
                Err(error) => return Err(explained(&error.to_string())),
            },
        };
        let split = |path: &str| {
            let (folder, name) = path.rsplit_once('/')?;
            let folder = if folder.is_empty() { "/" } else { folder };
            (!name.is_empty()).then(|| (folder.to_owned(), name.to_owned()))
        };
        let not_a_run = || explained("that is no run's folder");
        let (mut folder, mut name) = split(&whole).ok_or_else(not_a_run)?;
        let checkpoint = CheckpointName::new(name.as_str()).ok();
        if checkpoint.is_some() {
            (folder, name) = split(&folder).ok_or_else(not_a_run)?;
        }
        Ok(Self {
            storage_path: folder,
            name: Name::Continued(name),
            checkpoint,
        })
    }
}

fn text(path: PathBuf) -> Option<String> {
    path.into_os_string().into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(resume_from: &str) -> (String, String, Option<String>) {
        let found = Experiment::continued("/runs".into(), resume_from).unwrap();
        let name = found.name.continued().unwrap().to_owned();
        (found.storage_path, name, found.checkpoint.map(String::from))
    }

    #[test]
    fn a_name_a_run_and_a_checkpoint_are_told_apart() {
        assert_eq!(parts("night"), ("/runs".into(), "night".into(), None));
        let storage = tempfile::tempdir().unwrap();
        let root = storage.path().canonicalize().unwrap();
        let own = "checkpoint_2026-11-25_10-00-00.000000";
        let folder = root.join("night").join(own);
        std::fs::create_dir_all(&folder).unwrap();
        let place = root.to_str().unwrap().to_owned();
        let run = root.join("night");
        let of_run = (place.clone(), "night".to_owned(), None);
        assert_eq!(parts(run.to_str().unwrap()), of_run);
        assert_eq!(parts(&format!("{}/", run.display())), of_run);
        assert_eq!(parts(&format!("file://{}", run.display())), of_run);
        let of_checkpoint = (place, "night".to_owned(), Some(own.to_owned()));
        assert_eq!(parts(folder.to_str().unwrap()), of_checkpoint);
        let link = root.join("latest");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert_eq!(parts(link.to_str().unwrap()), of_checkpoint);
        let url = format!("s3://bucket/runs/night/{own}/");
        let of_url = ("s3://bucket/runs".into(), "night".into(), Some(own.into()));
        assert_eq!(parts(&url), of_url);
    }

    #[test]
    fn what_is_not_there_is_explained() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for wrong in ["/no/such/run", "/", file.path().to_str().unwrap()] {
            let failure = Experiment::continued("/runs".into(), wrong).unwrap_err();
            assert_eq!(failure.exit_code, 2);
            for word in ["--resume_from", wrong, "/runs", "checkpoint_..."] {
                assert!(failure.message.contains(word), "{}", failure.message);
            }
        }
    }
}
