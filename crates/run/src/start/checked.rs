//! What every way to start workers looks at first, so that what is wrong is said before anything is started.

use tandem_checkpoint::{RunDir, TrainState};
use tandem_data::Position;
use tandem_launch::experiment;

use crate::environment::Environment;
use crate::failure::{Failure, Outcome};
use crate::identity::identity;
use crate::kept_spec;
use crate::prepare::{Prepared, prepare};
use crate::resume::{check_progress, check_same_run};
use crate::show::display::Display;
use crate::show::screen;
use crate::spec::RunSpec;
use crate::storage::{Storage, nothing_to_continue};

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
    /// Where a checkpoint is named to go on from: what is saved from this moment on (microseconds since 1970) is newer.
    pub resumed_at: Option<i64>,
}

impl Checked {
    /// Opens the storage, looks whether it holds what the run needs, and prepares model and data. `local_workers` as in
    /// [`prepare`].
    pub fn new(
        spec: &RunSpec,
        environment: &Environment,
        local_workers: Option<usize>,
    ) -> Outcome<Self> {
        let name = match spec.output.experiment.name.given() {
            Some(name) => name.to_owned(),
            None => experiment::generated_name(spec.compute.engine.strategy.entry_point()),
        };
        let storage = Storage::open(&spec.output, environment, &name)?;
        match Self::in_storage(spec, environment, local_workers, &storage, &name) {
            Ok((prepared, display, resumed_at)) => Ok(Self {
                name,
                storage,
                prepared,
                display,
                resumed_at,
            }),
            Err(failure) => {
                storage.give_up();
                Err(failure)
            }
        }
    }

    fn in_storage(
        spec: &RunSpec,
        environment: &Environment,
        local_workers: Option<usize>,
        storage: &Storage,
        name: &str,
    ) -> Outcome<(Prepared, Display, Option<i64>)> {
        let run = storage.run(spec.checkpoints.kept.retention())?;
        let saved = saved_state(spec, storage, &run, name)?;
        let mut display = Display::new(spec);
        let prepared = prepare(spec, environment, local_workers, &mut display)?;
        display.finish();
        if let Some((location, state)) = &saved {
            check_same_run(state, &identity(spec, &prepared)?, location)?;
            check_progress(state, &prepared, location)?;
            if let Some(line) = finished(spec, state, &prepared) {
                display.line(&line);
            }
        }
        let chosen = spec.output.experiment.checkpoint.as_ref();
        Ok((
            prepared,
            display,
            chosen.map(|_| run.begin().created_unix_us),
        ))
    }

    /// Writes the spec into the run's folder: from here on there is a run, whose folder also has what is said of it.
    pub fn keep_configuration(&self, spec: &RunSpec) -> Outcome<()> {
        kept_spec::write(spec, &self.name, &self.storage)?;
        if let Err(error) = screen::keep_log(&self.storage.run_dir) {
            tracing::warn!(%error, "what this run says is not kept");
        }
        Ok(())
    }
}

/// The newest readable state of the experiment, if the run continues it. Whether all of its checkpoint can be read is seen
/// when the workers load it.
///
/// # Errors
/// There is nothing to continue, or there is something that would be continued although nobody asked for it.
pub fn saved_state(
    spec: &RunSpec,
    storage: &Storage,
    run: &RunDir,
    name: &str,
) -> Outcome<Option<(String, TrainState)>> {
    let latest = run.latest();
    if let Some(chosen) = &spec.output.experiment.checkpoint {
        let is_latest = latest.is_some_and(|latest| latest.name == *chosen);
        if spec.cluster.ray.is_some() && !is_latest {
            return Err(Failure::usage(format!(
                "--resume_from {chosen}: with --cluster ray, a run goes on from the newest of its checkpoints; leave the \
                 checkpoint's name out"
            )));
        }
        let reader = run.reader(chosen).map_err(Failure::other)?;
        return Ok(Some((reader.location(), reader.state().clone())));
    }
    match (spec.output.experiment.name.continued(), latest) {
        (None, None) => Ok(None),
        (None, Some(latest)) => Err(Failure::usage(format!(
            "{} holds an experiment with checkpoints already, the newest of step {}; pass --resume_from {name} to continue it, or \
             choose another --experiment_name",
            storage.location, latest.global_step
        ))),
        (Some(_), None) => {
            let torn = match run.torn() {
                [] => String::new(),
                torn => format!(", only what {} unfinished save(s) left", torn.len()),
            };
            let place = format!("{}{torn}", storage.location);
            Err(nothing_to_continue(name, &place))
        }
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

/// Says of a run that has nothing left to do what would give it something.
fn finished(spec: &RunSpec, state: &TrainState, prepared: &Prepared) -> Option<String> {
    let training = &spec.compute.training;
    let step = state.global_step;
    let next = Position {
        epoch: state.epoch,
        sample: state.next_sample,
    };
    let what = if prepared.sampler.steps_left(next) == 0 {
        format!(
            "all of --num_epochs {}; a larger --num_epochs",
            training.num_epochs
        )
    } else if training.max_steps > 0 && step >= training.max_steps {
        format!("--max_steps {}; a larger one", training.max_steps)
    } else {
        return None;
    };
    Some(format!(
        "the run is finished: step {step} is the end of {what} goes on with it"
    ))
}
