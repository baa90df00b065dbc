//! `--check_flags`: whether a run could begin. Nothing is started, made or downloaded.

use std::path::Path;

use tandem_data::{Hub, Weights};
use tandem_launch::exit_code;

use super::checked::saved_state;
use super::ray::find_python;
use crate::environment::Environment;
use crate::eval_data;
use crate::examples;
use crate::failure::{Failure, Outcome};
use crate::libtorch::{self, Libtorch};
use crate::prepare::{check_memory, plan, weights_of};
use crate::ranks::secret_in;
use crate::spec::RunSpec;
use crate::storage::Storage;
use crate::trained_model::TrainedModel;

/// The name that a run without one is checked under.
const SOME_NAME: &str = "run";

/// Looks at all that a run needs: model, weights, tokenizer, data, storage, the run that it continues, the secret, and what it
/// computes with. Returns what could not be looked at, a sentence each.
///
/// # Errors
/// Wrong usage: the first that is missing or does not fit.
pub fn check(spec: &RunSpec, environment: &Environment) -> Outcome<Vec<String>> {
    look(spec, environment).map_err(|failure| Failure {
        exit_code: exit_code::USAGE,
        ..failure
    })
}

fn look(spec: &RunSpec, environment: &Environment) -> Outcome<Vec<String>> {
    let workers = spec.compute.engine.mesh.world_size();
    let is_local = spec.cluster.ray.is_none();
    if is_local {
        let sharing = libtorch::workers(workers, spec.cluster.network.transport);
        Libtorch::ready(spec.compute.engine.device, sharing)?;
    } else {
        find_python(environment)?;
    }
    if let Some(path) = &spec.cluster.network.rendezvous_secret_file {
        secret_in(path)?;
    }
    let name = spec.output.experiment.name.given().unwrap_or(SOME_NAME);
    let storage = Storage::probe(&spec.output, environment, name)?;
    let run = storage.run(spec.checkpoints.kept.retention())?;
    if spec.output.experiment.name.given().is_some() {
        saved_state(spec, &storage, &run, name)?;
    }
    let hub = Hub::from_env().map_err(Failure::other)?;
    let mut notes = Vec::new();
    let trained = TrainedModel::of(spec, environment)?;
    match model(spec, &hub, weights_of(spec, trained.as_ref()))? {
        Found::Here(dir) => {
            let planned = plan(spec, &dir, trained.as_ref(), &mut ())?;
            if is_local {
                check_memory(&planned, workers)?;
            }
            let data = &spec.identity.selection.data;
            examples::model_tokenizer(data, &planned.model_dir, &planned.config)?;
        }
        Found::OnTheHub(note) => notes.push(note),
    }
    notes.extend(data(spec, &hub)?);
    evaluated(spec, &hub)?;
    Ok(notes)
}

/// Where a model is.
enum Found {
    /// On this machine, where this hub finds it.
    Here(Hub),
    /// Not yet.
    OnTheHub(String),
}

fn model(spec: &RunSpec, hub: &Hub, weights: Weights) -> Outcome<Found> {
    let name = &spec.identity.model_name;
    let offline = hub.offline();
    let is_cached = || offline.model_dir(name, weights, &mut ()).is_ok();
    if Path::new(name).exists() || is_cached() {
        return Ok(Found::Here(offline));
    }
    hub.model(name)
        .map_err(|error| Failure::usage(format!("--model_name: {error}")))?;
    Ok(Found::OnTheHub(format!(
        "the model {name} is on the hub and not here: the run begins with a download, and its files are looked at then"
    )))
}

fn data(spec: &RunSpec, hub: &Hub) -> Outcome<Vec<String>> {
    let data = &spec.identity.selection.data;
    if let Some(path) = &data.chat_template_path
        && !path.is_file()
    {
        return Err(Failure::usage(format!(
            "--chat_template_path {}: there is no such file",
            path.display()
        )));
    }
    let mut notes = Vec::new();
    for dataset in data.datasets() {
        let name = &dataset.name;
        let found = examples::source(data, name, &hub.offline(), &mut ());
        let Err(failure) = found.map(drop) else {
            continue;
        };
        if !is_elsewhere(name, hub) {
            return Err(failure);
        }
        notes.push(format!(
            "the dataset {name} is on the hub and not here: the run begins with a download, and it is looked at then"
        ));
    }
    Ok(notes)
}

/// What is evaluated on, where it is on this machine.
fn evaluated(spec: &RunSpec, hub: &Hub) -> Outcome<()> {
    let evaluation = &spec.compute.evaluation;
    if !evaluation.is_on() {
        return Ok(());
    }
    let choice = evaluation.choice(&spec.identity.selection.data);
    let found = eval_data::resolve(&choice, evaluation.flag(), &hub.offline(), &mut ());
    match found {
        Err(failure) if !is_elsewhere(&choice.dataset, hub) => Err(failure),
        _ => Ok(()),
    }
}

/// Whether a dataset that is not here can still be brought from the hub.
fn is_elsewhere(name: &str, hub: &Hub) -> bool {
    !examples::is_path(name) && (name == "wikitext" || hub.dataset(name).is_ok())
}
