//! Names to local files: what is local is taken as it is, anything else is a repository of the Hugging Face hub.
//!
//! The cache on disk is the one of `huggingface_hub` and of all programs that use it, so nothing is downloaded twice.
//! The processes of one host share it: one downloads while the others wait, and then find everything there. To be sure
//! that all of them see the same revision, let one fetch and the others use [`Hub::offline`] after it.

mod error;
mod model;
mod settings;
mod snapshot;

use std::path::{Path, PathBuf};

use hf_hub::RepoType;

pub use error::HubError;
pub use model::Weights;
pub use settings::Settings;
pub use snapshot::Snapshot;

use crate::progress::Progress;

/// The hub, as the settings have it.
#[derive(Debug, Clone)]
pub struct Hub {
    settings: Settings,
}

impl Hub {
    /// The hub with these settings. Nothing is contacted yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// The hub as the environment has it.
    ///
    /// # Errors
    /// A variable with a value that it cannot have.
    pub fn from_env() -> Result<Self, HubError> {
        Settings::from_env().map(Self::new)
    }

    /// The same cache, without contacting anybody: for the processes of a host after one of them has fetched.
    pub fn offline(&self) -> Self {
        let settings = Settings {
            offline: true,
            ..self.settings.clone()
        };
        Self { settings }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The folder of a model: configuration, tokenizer files that there are, and the weights if they are needed.
    ///
    /// `name` is a local folder or the name of a model on the hub.
    ///
    /// # Errors
    /// No such folder and no such model; no network and nothing cached; a model without `config.json` or safetensors.
    pub fn model_dir(
        &self,
        name: &str,
        weights: Weights,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, HubError> {
        if let Some(dir) = local_dir(name)? {
            return Ok(dir);
        }
        model::fetch(self.open(name, RepoType::Model)?, weights, progress)
    }

    /// The files of a model on the hub; none is downloaded yet.
    ///
    /// # Errors
    /// No such model; no network and nothing cached.
    pub fn model(&self, name: &str) -> Result<Snapshot, HubError> {
        self.open(name, RepoType::Model)
    }

    /// The files of a dataset on the hub; none is downloaded yet.
    ///
    /// # Errors
    /// No such dataset; no network and nothing cached.
    pub fn dataset(&self, name: &str) -> Result<Snapshot, HubError> {
        self.open(name, RepoType::Dataset)
    }

    fn open(&self, name: &str, repo_type: RepoType) -> Result<Snapshot, HubError> {
        if !is_hub_name(name) {
            // A path that leads nowhere is another thing than one that this user may not look at.
            return Err(match Path::new(name).try_exists() {
                Err(source) => HubError::NoWay {
                    path: name.into(),
                    source,
                },
                Ok(_) => HubError::NoSuchPath { name: name.into() },
            });
        }
        Snapshot::open(&self.settings, name, repo_type)
    }
}

fn local_dir(name: &str) -> Result<Option<PathBuf>, HubError> {
    let path = Path::new(name);
    if path.is_file() {
        return Err(HubError::NotAFolder { path: path.into() });
    }
    if path.exists() && !path.is_dir() {
        return Err(HubError::NotAFile { path: path.into() });
    }
    if !path.is_dir() {
        return Ok(None);
    }
    only_regular_files(path)?;
    Ok(Some(path.into()))
}

/// Refuses a local folder in which something that is no regular file has the name of a model's file.
fn only_regular_files(dir: &Path) -> Result<(), HubError> {
    // A folder that cannot be listed may still have files that can be read.
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_of_model = path.extension().is_some_and(|ending| {
            ["json", "safetensors", "txt", "jinja"]
                .iter()
                .any(|e| ending == *e)
        });
        if is_of_model && path.exists() && !path.is_file() && !path.is_dir() {
            return Err(HubError::NotAFile { path });
        }
    }
    Ok(())
}

/// Whether this could name a repository: `name` or `owner/name`, of letters, digits and `-_.`, and no path.
fn is_hub_name(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_not_paths() {
        for name in ["gpt2", "Qwen/Qwen2-0.5B", "a-b/c_d.e"] {
            assert!(is_hub_name(name), "{name}");
        }
        for name in [
            "", "/a/b", "./model", "../model", "a/b/c", "a//b", "a b/c", "~/model", "a/",
        ] {
            assert!(!is_hub_name(name), "{name}");
        }
    }

    #[test]
    fn local_folders_are_taken_as_they_are() {
        let settings = Settings::from_variables(|_| None).unwrap();
        let hub = Hub::new(settings);
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().to_str().unwrap();
        let found = hub.model_dir(name, Weights::Needed, &mut ()).unwrap();
        assert_eq!(found, dir.path());
        let missing = format!("{name}/missing");
        let error = hub
            .model_dir(&missing, Weights::Needed, &mut ())
            .unwrap_err();
        assert!(
            error.to_string().contains("no such file or folder"),
            "{error}"
        );
        // As a folder is whose owner lets nobody in.
        let circle = format!("{name}/circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        let below = format!("{circle}/model");
        let error = hub.model_dir(&below, Weights::Needed, &mut ()).unwrap_err();
        assert!(error.to_string().contains("cannot look at"), "{error}");
        let file = format!("{name}/file");
        std::fs::write(&file, "").unwrap();
        let error = hub.model_dir(&file, Weights::Needed, &mut ()).unwrap_err();
        assert!(error.to_string().contains("is a file"), "{error}");
        // Whoever opened it would wait for ever.
        let pipe = format!("{name}/config.json");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let error = hub.model_dir(name, Weights::Needed, &mut ()).unwrap_err();
        assert!(
            error.to_string().contains("config.json is no regular file"),
            "{error}"
        );
        let error = hub.model_dir(&pipe, Weights::Needed, &mut ()).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
    }
}
