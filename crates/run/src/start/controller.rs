//! The controller's side: check everything, start the workers, show how they do.

use std::ffi::OsString;
use std::time::Duration;

use tandem_launch::controller::ControllerEvent;
use tandem_launch::exit_code;
use tandem_launch::protocol::{Level, WorkerEvent};
use tandem_trainer::{EventSink, TrainEvent};

use crate::environment::{EVAL_TOKEN_CACHE, Environment, RESUMED_AT, TOKEN_CACHE};
use crate::failure::Outcome;
use crate::libtorch::{self, Libtorch};
use crate::limits;
use crate::log::is_news;
use crate::show::display::Display;
use crate::show::reporter::{evaluation_from_message, from_message};
use crate::show::{outcome, screen, summary};
use crate::spec::RunSpec;
use crate::start::checked::Checked;
use crate::start::lease::Lease;
use crate::start::local::{self, Supervision};

/// Runs the whole training on this machine, with workers that get `args`. Returns the exit code.
pub fn run(spec: &RunSpec, args: &[OsString], environment: &Environment) -> Outcome<i32> {
    let num_workers = spec.compute.engine.mesh.world_size();
    let workers = libtorch::workers(num_workers, spec.cluster.network.transport);
    let libtorch = Libtorch::ready(spec.compute.engine.device, workers)?;
    // Again when workers are started, which is after all that takes long.
    limits::check_all(num_workers)?;
    let checked = Checked::new(spec, environment, Some(num_workers))?;
    let _lease = Lease::take(&checked.storage)?;
    checked.keep_configuration(spec)?;
    let Checked {
        name,
        storage,
        prepared,
        mut display,
        resumed_at,
    } = checked;
    let lines = summary::lines(spec, &prepared, &storage.location, Some(libtorch));
    display.event(TrainEvent::Summary(lines));

    let mut show = Show {
        display,
        started: false,
        is_noted: false,
    };
    let supervision = Supervision {
        max_failures: spec.checkpoints.kept.max_failures,
        hang_timeout: Duration::from_secs(spec.checkpoints.watch.hang_timeout_s),
        graceful_stop: true,
    };
    let caches = prepared.token_cache_variable();
    let mut variables: Vec<(&str, OsString)> = Vec::new();
    variables.extend(caches.map(|caches| (TOKEN_CACHE, caches)));
    if let Some(evaluation) = prepared.evaluation {
        variables.push((EVAL_TOKEN_CACHE, evaluation.data.token_cache.into()));
    }
    if let Some(moment) = resumed_at {
        variables.push((RESUMED_AT, moment.to_string().into()));
    }
    let result = local::run_workers(
        libtorch,
        args,
        num_workers,
        &storage.run_dir,
        &variables,
        supervision,
        &mut |event| show.event(event),
    );
    show.display.finish();
    let code = result?;
    let is_finished = code == exit_code::OK;
    if is_finished || code == exit_code::STOPPED_AFTER_SAVING {
        for line in outcome::lines(spec, &storage, &name, is_finished) {
            screen::last_line(&line);
        }
    }
    Ok(code)
}

/// Shows rank 0's progress and everybody's trouble.
struct Show {
    display: Display,
    started: bool,
    is_noted: bool,
}

impl Show {
    fn event(&mut self, event: &ControllerEvent) {
        match event {
            ControllerEvent::Worker {
                rank,
                event:
                    WorkerEvent::Message {
                        level: Level::Warning,
                        text,
                    },
            } if is_news(text, Some(*rank)) => {
                self.display.line(&match rank {
                    0 => format!("warning: {text}"),
                    _ => format!("warning: rank {rank}: {text}"),
                });
            }
            // Somebody has said it already.
            ControllerEvent::Worker {
                event:
                    WorkerEvent::Message {
                        level: Level::Warning,
                        ..
                    },
                ..
            } => {}
            ControllerEvent::Worker { rank: 0, event } => self.first_rank(event),
            ControllerEvent::Worker {
                rank,
                event: WorkerEvent::Message { text, .. },
            } => self.display.line(&format!("rank {rank}: {text}")),
            ControllerEvent::Restarting { failure, delay, .. } => {
                self.started = false;
                self.display.line(&format!(
                    "{failure}\nstarting again in {:.1} s",
                    delay.as_secs_f64()
                ));
            }
            ControllerEvent::Warning { text } => self.display.line(&format!("warning: {text}")),
            ControllerEvent::StopRequested { signal, graceful } if *graceful => {
                self.display.line(&format!(
                    "{signal}: the workers finish their step, save and leave; once more ends them at once"
                ));
            }
            ControllerEvent::LockTakenOver { owner } => self.display.line(&format!(
                "took over the run from a controller that is gone: {owner}"
            )),
            _ => {}
        }
        self.note_lost_output();
    }

    /// Output that cannot be written is dropped; that it was is said once, where it can be found.
    fn note_lost_output(&mut self) {
        if self.is_noted {
            return;
        }
        if let Some(error) = self.display.take_lost() {
            self.is_noted = true;
            screen::only_in_log(&format!(
                "standard error cannot be written to any more ({error}); the run goes on, and this log and metrics.jsonl have \
                 its steps"
            ));
        }
    }

    fn first_rank(&mut self, event: &WorkerEvent) {
        match event {
            WorkerEvent::Progress {
                step,
                epoch,
                metrics,
            } => {
                let (metrics, last_step) = from_message(*step, *epoch, metrics);
                if !self.started {
                    self.started = true;
                    self.display.event(TrainEvent::Begin {
                        first_step: *step,
                        last_step,
                    });
                }
                self.display.event(TrainEvent::Step(metrics));
            }
            WorkerEvent::Message { text, .. } => self.display.line(text),
            WorkerEvent::Report {
                checkpoint_dir_name: None,
                metrics,
            } => {
                if let Some(evaluated) = evaluation_from_message(metrics) {
                    self.display.event(evaluated);
                }
            }
            WorkerEvent::Report {
                checkpoint_dir_name: Some(name),
                metrics,
            } => {
                let number = |name: &str| metrics.get(name).unwrap_or_default();
                let step = number("step") as u64;
                let (seconds, blocked_s) = (number("save_s"), number("save_blocked_s"));
                self.display.saved(name, step, seconds, blocked_s);
            }
            _ => {}
        }
    }
}
