//! The model of a run that goes on. Its checkpoints hold the weights, so those that it began with are not opened again: they
//! may be gone, or others by now. Config and tokenizer must be what they were.

use serde_json::Value;
use tandem_checkpoint::{RunDir, local_path, model_files, open_store};
use tandem_model::ModelConfig;

use crate::environment::Environment;
use crate::failure::{Failure, Outcome};
use crate::model_files::CONFIG;
use crate::spec::{Init, RunSpec};

/// What the run's folder says of a model whose weights its checkpoints hold.
pub struct TrainedModel {
    /// Whether the head is the embedding, which the first weights may have decided otherwise than config.json.
    pub tie_word_embeddings: bool,
}

impl TrainedModel {
    /// That of the run that goes on. `None` where it begins, with whatever weights, or its checkpoints are of adapters.
    ///
    /// # Errors
    /// The storage refuses.
    pub fn of(spec: &RunSpec, environment: &Environment) -> Outcome<Option<Self>> {
        let Some(folder) = folder(spec, environment) else {
            return Ok(None);
        };
        if spec.compute.training.init == Init::Random
            || spec.identity.selection.lora.is_on()
            || local_path(&folder).is_some_and(|path| !path.is_dir())
        {
            return Ok(None);
        }
        let store = open_store(&folder, environment.variables()).map_err(Failure::other)?;
        let retention = spec.checkpoints.kept.retention();
        let run = RunDir::open(store.clone(), retention).map_err(Failure::other)?;
        if run.latest().is_none() && spec.output.experiment.checkpoint.is_none() {
            return Ok(None);
        }
        let kept = model_files(store.as_ref()).map_err(Failure::other)?;
        let config = kept.iter().find(|file| file.name == CONFIG);
        Ok(config.and_then(|config| Self::from_config(&config.bytes)))
    }

    /// `None` where the file is not as a run writes it: what it began with is asked then.
    fn from_config(bytes: &[u8]) -> Option<Self> {
        let Ok(Value::Object(map)) = serde_json::from_slice(bytes) else {
            return None;
        };
        let config = ModelConfig::from_json(&map).ok()?;
        Some(Self {
            tie_word_embeddings: config.tie_word_embeddings,
        })
    }
}

/// The place of the run's checkpoints; `None` where it has no name yet.
fn folder(spec: &RunSpec, environment: &Environment) -> Option<String> {
    let experiment = &spec.output.experiment;
    match (&environment.run_dir, experiment.name.given()) {
        (Some(folder), _)
            if local_path(&experiment.storage_path).is_some() || folder.contains("://") =>
        {
            Some(folder.clone())
        }
        // In object storage, a supervisor's folder is that of the logs, and its name the experiment's.
        (Some(folder), _) => {
            let name = folder.rsplit('/').next().unwrap_or(folder);
            Some(format!(
                "{}/{name}",
                experiment.storage_path.trim_end_matches('/')
            ))
        }
        (None, Some(name)) => Some(format!(
            "{}/{name}",
            experiment.storage_path.trim_end_matches('/')
        )),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_config_says_nothing() {
        for bad in ["", "3", "{}", r#"{"architectures": ["LlamaForCausalLM"]}"#] {
            assert!(TrainedModel::from_config(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
