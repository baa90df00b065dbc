//! The controller's side: check everything, start the workers, show how they do.

use std::time::Duration;

use tandem_checkpoint::TrainState;
use tandem_launch::controller::ControllerEvent;
use tandem_launch::protocol::Event as Message;
use tandem_launch::{exit_code, experiment};
use tandem_trainer::{Event, EventSink};

use crate::display::Display;
use crate::failure::{Failure, Outcome};
use crate::local::{self, Supervision};
use crate::prepare::{TOKEN_CACHE, check_memory, prepare};
use crate::reporter::from_message;
use crate::request::Request;
use crate::storage::Storage;
use crate::summary;
use crate::train::identity::identity;
use crate::train::resume::check_same_run;
use crate::worker::write_whole;

/// Runs the whole training on this machine. Returns the exit code.
pub fn run(request: &Request) -> Outcome<i32> {
    let mesh = request.check()?;
    let common = request.common();
    let name = match common.experiment() {
        Some(name) => name.to_owned(),
        None => experiment::generated_name(request.entry_point()),
    };
    let storage = Storage::open(common, &name)?;
    let saved = saved_state(request, &storage, &name)?;
    let mut display = Display::new(common.log_interval);
    let prepared = prepare(request, mesh, &mut display)?;
    check_memory(&prepared, mesh.world_size())?;
    if let Some((location, state)) = &saved {
        check_same_run(state, &identity(request, mesh, &prepared), location)?;
    }
    display.finish();
    let text = serde_json::to_string_pretty(&request.to_json()).map_err(Failure::other)?;
    write_whole(&storage.run_dir.join("run_config.json"), &text)?;
    let lines = summary::lines(request, mesh, &prepared, &storage.location);
    display.event(Event::Summary(lines));

    let mut show = Show {
        display,
        started: false,
    };
    let supervision = Supervision {
        max_failures: common.checkpoints.max_failures,
        hang_timeout: Duration::from_secs(common.checkpoints.hang_timeout_s),
        graceful_stop: true,
    };
    let result = local::run_workers(
        mesh.world_size(),
        &storage.run_dir,
        &[(TOKEN_CACHE, prepared.token_cache.into())],
        supervision,
        &mut |event| show.event(event),
    );
    show.display.finish();
    let code = result?;
    match code {
        exit_code::OK => eprintln!(
            "done; metrics and logs are in {}",
            storage.run_dir.display()
        ),
        exit_code::STOPPED_AFTER_SAVING => eprintln!("--resume_from {name} continues"),
        _ => {}
    }
    Ok(code)
}

/// The newest readable state of the experiment, if the run continues it. Whether all of its checkpoint can be read is seen
/// when the workers load it.
///
/// # Errors
/// There is nothing to continue, or there is something that would be continued although nobody asked for it.
fn saved_state(
    request: &Request,
    storage: &Storage,
    name: &str,
) -> Outcome<Option<(String, TrainState)>> {
    let checkpoints = &request.common().checkpoints;
    let run = storage.run(checkpoints.retention())?;
    let latest = run.latest();
    match (&checkpoints.resume_from, latest) {
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

/// Shows rank 0's progress and everybody's trouble.
struct Show {
    display: Display,
    started: bool,
}

impl Show {
    fn event(&mut self, event: &ControllerEvent) {
        match event {
            ControllerEvent::Worker { rank: 0, event } => self.first_rank(event),
            ControllerEvent::Worker {
                rank,
                event: Message::Message { text, .. },
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
    }

    fn first_rank(&mut self, event: &Message) {
        match event {
            Message::Progress {
                step,
                epoch,
                metrics,
            } => {
                let (metrics, last_step) = from_message(*step, *epoch, metrics);
                if !self.started {
                    self.started = true;
                    self.display.event(Event::Begin {
                        first_step: *step,
                        last_step,
                    });
                }
                self.display.event(Event::Step(metrics));
            }
            Message::Message { text, .. } => self.display.line(text),
            Message::Report {
                checkpoint_dir_name: Some(name),
                metrics,
            } => {
                let step = metrics.get("step").unwrap_or_default();
                self.display.saved(name, step as u64);
            }
            _ => {}
        }
    }
}
