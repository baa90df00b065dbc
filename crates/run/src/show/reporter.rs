//! Between the trainer's events and whoever watches: the controller's socket, or this terminal.

use std::collections::BTreeMap;

use tandem_launch::client::ControlClient;
use tandem_launch::output::note;
use tandem_launch::protocol::{Level, Metrics, PHASE_TRAINING, WorkerEvent};
use tandem_trainer::{EventSink, StepMetrics, TrainEvent};

use crate::show::display::Display;
use crate::spec::RunSpec;

/// The name by which an evaluation is told from other reports.
const EVAL_LOSS: &str = "eval_loss";

/// A worker's event sink. Every rank tells the controller how far it is; rank 0 also tells what to show.
pub enum Reporter<'a> {
    /// A controller listens.
    Controller {
        /// Its socket.
        control: &'a ControlClient,
        /// This rank shows the run.
        is_first: bool,
        /// The last step of the run.
        last_step: u64,
        /// What this rank writes down in its log.
        diary: Diary,
    },
    /// Nobody listens: rank 0 shows by itself.
    Terminal(Display),
    /// Nobody listens, and another rank shows.
    Silent,
}

impl<'a> Reporter<'a> {
    /// The sink of a worker of rank `rank`. `has_log`: what it prints goes to a log of its own, and not to its supervisor's
    /// screen, as with Ray.
    pub fn new(control: &'a ControlClient, rank: usize, spec: &RunSpec, has_log: bool) -> Self {
        match (control.is_connected(), rank) {
            (true, _) => Self::Controller {
                control,
                is_first: rank == 0,
                last_step: 0,
                diary: Diary {
                    has_log,
                    log_interval: spec.output.shown.log_interval.max(1),
                    phase: String::new(),
                },
            },
            (false, 0) => Self::Terminal(Display::new(spec)),
            (false, _) => Self::Silent,
        }
    }
}

impl EventSink for Reporter<'_> {
    fn event(&mut self, event: TrainEvent) {
        match self {
            Self::Silent => {}
            Self::Terminal(display) => display.event(event),
            Self::Controller {
                control,
                is_first,
                last_step,
                diary,
            } => match diary.seen(event) {
                TrainEvent::Phase(name) => control.send(&WorkerEvent::Phase { name }),
                // What is being prepared counts as a sign of life.
                TrainEvent::Progress { what, .. } => {
                    control.send(&WorkerEvent::Phase { name: what })
                }
                TrainEvent::Summary(lines) | TrainEvent::Profile(lines) if *is_first => control
                    .send(&WorkerEvent::Message {
                        level: Level::Info,
                        text: lines.join("\n"),
                    }),
                TrainEvent::Begin {
                    last_step: last, ..
                } => {
                    *last_step = last;
                    control.send(&WorkerEvent::Phase {
                        name: PHASE_TRAINING.to_owned(),
                    });
                }
                TrainEvent::Step(metrics) => control.send(&WorkerEvent::Progress {
                    step: metrics.step,
                    epoch: metrics.epoch,
                    metrics: to_message(&metrics, *last_step),
                }),
                TrainEvent::Saving => control.send(&WorkerEvent::Phase {
                    name: "saving".to_owned(),
                }),
                TrainEvent::Evaluating => control.send(&WorkerEvent::Phase {
                    name: "evaluating".to_owned(),
                }),
                // Every rank reports it: Ray's callbacks hear of it when all have.
                TrainEvent::Evaluated {
                    step,
                    eval_loss,
                    perplexity,
                    tokens,
                    seconds,
                } => control.send(&WorkerEvent::Report {
                    metrics: [
                        ("step", step as f64),
                        (EVAL_LOSS, eval_loss),
                        ("perplexity", perplexity),
                        ("eval_tokens", tokens as f64),
                        ("eval_seconds", seconds),
                    ]
                    .into_iter()
                    .collect(),
                    checkpoint_dir_name: None,
                }),
                // Every rank reports, as Ray Train wants it; the first one's reports are the run's.
                TrainEvent::Saved(saved) => {
                    if *is_first {
                        for text in saved.warnings {
                            control.send(&warning(text));
                        }
                    }
                    let mut metrics = saved_metrics(&saved.metrics);
                    metrics.insert("save_s", saved.seconds);
                    metrics.insert("save_blocked_s", saved.blocked_s);
                    control.send(&WorkerEvent::Report {
                        metrics,
                        checkpoint_dir_name: Some(saved.name),
                    });
                }
                TrainEvent::SaveFailed { step, problem } if *is_first => {
                    control.send(&warning(format!(
                        "no checkpoint after step {step}: {problem}; training goes on"
                    )));
                }
                TrainEvent::SaveFailed { .. }
                | TrainEvent::Summary(_)
                | TrainEvent::Profile(_)
                | TrainEvent::End => {}
            },
        }
    }
}

/// What a rank does, for its log: what the run shows is rank 0's, and where another one is slow or ends is in its own.
pub struct Diary {
    has_log: bool,
    log_interval: u64,
    /// The last one; it is told of again and again.
    phase: String,
}

impl Diary {
    /// Writes down what is worth it.
    fn seen(&mut self, event: TrainEvent) -> TrainEvent {
        if !self.has_log {
            return event;
        }
        match &event {
            TrainEvent::Phase(name) | TrainEvent::Progress { what: name, .. } => self.phase(name),
            TrainEvent::Begin {
                first_step,
                last_step,
            } => note(&format!("training, from step {first_step} to {last_step}")),
            TrainEvent::Step(metrics) => {
                self.phase.clear();
                if metrics.step.is_multiple_of(self.log_interval) {
                    note(&format!(
                        "step {}: loss {:.4}, {:.3} s",
                        metrics.step, metrics.loss, metrics.step_time_s
                    ));
                }
            }
            TrainEvent::Evaluating => self.phase("evaluating"),
            TrainEvent::Evaluated {
                step, eval_loss, ..
            } => note(&format!(
                "evaluated after step {step}: eval loss {eval_loss:.4}"
            )),
            TrainEvent::Saving => self.phase("waiting for a save"),
            TrainEvent::Saved(saved) => note(&format!(
                "saved {} (step {}) in {:.1} s",
                saved.name, saved.step, saved.seconds
            )),
            TrainEvent::SaveFailed { step, problem } => {
                note(&format!("no checkpoint after step {step}: {problem}"));
            }
            TrainEvent::End => note("training is over"),
            TrainEvent::Summary(_) | TrainEvent::Profile(_) => {}
        }
        event
    }

    fn phase(&mut self, name: &str) {
        if self.phase != name {
            name.clone_into(&mut self.phase);
            note(name);
        }
    }
}

fn warning(text: String) -> WorkerEvent {
    WorkerEvent::Message {
        level: Level::Warning,
        text,
    }
}

/// A checkpoint's measurements as the protocol carries them.
pub fn saved_metrics(metrics: &BTreeMap<String, serde_json::Value>) -> Metrics {
    metrics
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
        .collect()
}

/// An evaluation as it comes back from the protocol; `None` for other reports.
pub fn evaluation_from_message(metrics: &Metrics) -> Option<TrainEvent> {
    let number = |name: &str| metrics.get(name).unwrap_or(f64::NAN);
    Some(TrainEvent::Evaluated {
        eval_loss: metrics.get(EVAL_LOSS)?,
        step: number("step") as u64,
        perplexity: number("perplexity"),
        tokens: number("eval_tokens") as u64,
        seconds: number("eval_seconds"),
    })
}

/// The numbers of a step as the protocol carries them.
pub fn to_message(metrics: &StepMetrics, last_step: u64) -> Metrics {
    [
        ("loss", metrics.loss),
        ("lr", metrics.lr),
        ("grad_norm", metrics.grad_norm),
        ("tokens_per_s", metrics.tokens_per_s),
        ("step_time_s", metrics.step_time_s),
        ("tokens_seen", metrics.tokens_seen as f64),
        ("mfu", metrics.mfu),
        ("last_step", last_step as f64),
    ]
    .into_iter()
    .collect()
}

/// Rank 0's numbers as they come back from the protocol.
pub fn from_message(step: u64, epoch: u64, metrics: &Metrics) -> (StepMetrics, u64) {
    let number = |name: &str| metrics.get(name).unwrap_or(f64::NAN);
    let metrics = StepMetrics {
        step,
        epoch,
        loss: number("loss"),
        lr: number("lr"),
        grad_norm: number("grad_norm"),
        tokens_per_s: number("tokens_per_s"),
        step_time_s: number("step_time_s"),
        saving_s: 0.0,
        tokens_seen: number("tokens_seen") as u64,
        n_tokens: 0,
        mfu: number("mfu"),
        tokens_per_s_per_device: f64::NAN,
        tflops_per_device: f64::NAN,
        peak_memory_mb: Vec::new(),
        experts: None,
        time: f64::NAN,
    };
    (metrics, number("last_step") as u64)
}
