//! What every way to start workers looks at first, so that what is wrong is said before anything is started.

use tandem_checkpoint::TrainState;
use tandem_launch::experiment;

use crate::environment::Environment;
use crate::failure::{Failure, Outcome};
use crate::identity::identity;
use crate::prepare::{Prepared, prepare};
use crate::resume::check_same_run;
use crate::show::display::Display;
use crate::spec::RunSpec;
use crate::storage::{Storage, write_whole};

/// A run that can be started.
pub struct Checked {
    /// The experiment's name.
    pub name: String,
    /// Where it is kept.
    pub storage: Storage,
    /// Model and data.
    pub prepared: Prepared,
    /// Shows the run.
    pub display: Display,
}

impl Checked {
    /// Opens the storage, looks whether it holds what the run needs, and prepares model and data.
    pub fn new(spec: &RunSpec, environment: &Environment) -> Outcome<Self> {
        let name = match spec.output.experiment.name.given() {
            Some(name) => name.to_owned(),
            None => experiment::generated_name(spec.compute.engine.strategy.entry_point()),
        };
        let storage = Storage::open(&spec.output, environment, &name)?;
        let saved = saved_state(spec, &storage, &name)?;
        let mut display = Display::new(spec.output.shown.log_interval);
        let prepared = prepare(spec, environment, &mut display)?;
        if let Some((location, state)) = &saved {
            check_same_run(state, &identity(spec, &prepared), location)?;
        }
        display.finish();
        Ok(Self {
            name,
            storage,
            prepared,
            display,
        })
    }

    /// Writes the spec into the run's folder.
    pub fn keep_configuration(&self, spec: &RunSpec) -> Outcome<()> {
        let text = serde_json::to_string_pretty(spec).map_err(Failure::other)?;
        write_whole(&self.storage.run_dir.join("run_config.json"), &text)
    }
}

/// The newest readable state of the experiment, if the run continues it. Whether all of its checkpoint can be read is seen
/// when the workers load it.
///
/// # Errors
/// There is nothing to continue, or there is something that would be continued although nobody asked for it.
fn saved_state(
    spec: &RunSpec,
    storage: &Storage,
    name: &str,
) -> Outcome<Option<(String, TrainState)>> {
    let run = storage.run(spec.checkpoints.kept.retention())?;
    let latest = run.latest();
    match (spec.output.experiment.name.continued(), latest) {
        (None, None) => Ok(None),
        (None, Some(latest)) => Err(Failure::usage(format!(
            "{} holds an experiment with checkpoints already, the newest of step {}; pass --resume_from {name} to continue it, or \
             choose another --experiment_name",
            storage.location, latest.global_step
        ))),
        (Some(_), None) => Err(Failure::usage(format!(
            "--resume_from {name}: there is no checkpoint in {}{}",
            storage.location,
            match run.torn() {
                [] => String::new(),
                torn => format!(", only what {} unfinished save(s) left", torn.len()),
            }
        ))),
        (Some(_), Some(_)) => {
            let readable = run
                .checkpoints()
                .iter()
                .rev()
                .find_map(|entry| run.reader(&entry.name).ok());
            Ok(readable.map(|reader| (reader.location(), reader.state().clone())))
        }
    }
}
