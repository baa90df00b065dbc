//! The controller's side: check everything, start the workers, show how they do.

use std::path::PathBuf;

use tandem_launch::controller::ControllerEvent;
use tandem_launch::experiment;
use tandem_launch::protocol::Event as Message;
use tandem_trainer::{Event, EventSink};

use crate::display::Display;
use crate::failure::{Failure, Outcome};
use crate::local;
use crate::prepare::{check_memory, prepare};
use crate::reporter::from_message;
use crate::request::Request;
use crate::summary;
use crate::worker::write_whole;

/// Runs the whole training on this machine. Returns the exit code.
pub fn run(request: &Request) -> Outcome<i32> {
    let mesh = request.check()?;
    let common = request.common();
    let run_dir = run_dir(request)?;
    let mut display = Display::new(common.log_interval);
    let prepared = prepare(request, mesh, &mut display)?;
    check_memory(&prepared, mesh.world_size())?;
    display.finish();
    let text = serde_json::to_string_pretty(&request.to_json()).map_err(Failure::other)?;
    write_whole(&run_dir.join("run_config.json"), &text)?;
    let lines = summary::lines(request, mesh, &prepared, &run_dir.display().to_string());
    display.event(Event::Summary(lines));

    let mut show = Show {
        display,
        started: false,
    };
    let result = local::run_workers(mesh.world_size(), &run_dir, &[], &mut |event| {
        show.event(event)
    });
    show.display.finish();
    let code = result?;
    if code == 0 {
        eprintln!("done; metrics and logs are in {}", run_dir.display());
    }
    Ok(code)
}

/// The experiment's folder, made if it is not there.
fn run_dir(request: &Request) -> Outcome<PathBuf> {
    let common = request.common();
    let name = match &common.experiment_name {
        Some(name) => name.clone(),
        None => experiment::generated_name(request.entry_point()),
    };
    experiment::create_run_dir(&common.storage_path, &name).map_err(Failure::other)
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
            _ => {}
        }
    }
}
