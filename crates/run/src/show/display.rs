//! What a person sees while a run goes: a progress bar on a terminal, and above it, as elsewhere, plain lines.

use std::cell::RefCell;
use std::io::{Error, IsTerminal};
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tandem_launch::output::redacted;
use tandem_trainer::{EventSink, StepMetrics, TrainEvent};

use crate::show::progress::ProgressLine;
use crate::show::screen;
use crate::spec::RunSpec;

/// Columns of a terminal that does not tell.
const USUAL_WIDTH: usize = 80;

/// How much of the time that is left follows the last step, and not those before.
const LATEST: f64 = 0.1;

/// Shows events on standard error (standard output stays free for results).
pub struct Display {
    bar: Option<ProgressBar>,
    preparing: Option<String>,
    is_terminal: bool,
    log_interval: u64,
    epochs: Option<u64>,
    first_step: u64,
    last_step: u64,
    /// Seconds of a step, as they go.
    step_time_s: Option<f64>,
    /// Why a line could not be written.
    lost: RefCell<Option<Error>>,
}

impl Display {
    /// A display of this run, which prints a line every `log_interval` steps.
    pub fn new(spec: &RunSpec) -> Self {
        let epochs = spec.compute.training.num_epochs;
        Self {
            bar: None,
            preparing: None,
            is_terminal: std::io::stderr().is_terminal(),
            log_interval: spec.output.shown.log_interval.max(1),
            epochs: (epochs > 0).then_some(epochs),
            first_step: 0,
            last_step: 0,
            step_time_s: None,
            lost: RefCell::default(),
        }
    }

    /// Why the first line that could not be written was not, once.
    pub fn take_lost(&mut self) -> Option<Error> {
        self.lost.take()
    }

    /// Shows a line, above the bar if there is one.
    pub fn line(&self, text: &str) {
        if let Err(error) = screen::line(text) {
            // It is dropped: the run goes on without anybody who sees it.
            self.lost.borrow_mut().get_or_insert(error);
        }
    }

    fn set_bar(&mut self, bar: ProgressBar) {
        screen::set_bar(Some(bar.clone()));
        self.bar = Some(bar);
    }

    /// Takes the bar away, for what comes after the run.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            screen::set_bar(None);
            bar.finish_and_clear();
        }
        self.preparing = None;
    }

    fn progress(&mut self, what: &str, done: u64, total: u64) {
        if self.preparing.as_deref() != Some(what) {
            self.finish();
            self.preparing = Some(what.to_owned());
            if self.is_terminal {
                screen::only_in_log(&format!("{what} ..."));
                self.set_bar(styled_bar(total, "{prefix} [{wide_bar}] {percent}%"));
            } else {
                self.line(&format!("{what} ..."));
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_prefix(redacted(what).into_owned());
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// Shows that there is a new checkpoint.
    pub fn saved(&self, name: &str, step: u64, seconds: f64, blocked_s: f64) {
        self.line(&format!(
            "saved {name} (step {step}) in {seconds:.1} s, of which training waited {blocked_s:.2} s"
        ));
    }

    fn begin(&mut self, first_step: u64, last_step: u64) {
        self.finish();
        self.first_step = first_step;
        self.last_step = last_step;
        self.step_time_s = None;
        if self.is_terminal {
            // What it says is put together here, because what there is room for depends on the width.
            self.set_bar(styled_bar(last_step, "{wide_msg}"));
        }
    }

    fn step(&mut self, metrics: &StepMetrics) {
        let width = self.is_terminal.then(width);
        let progress = self.after(metrics);
        let step = metrics.step;
        let is_due = step.is_multiple_of(self.log_interval)
            || step == self.first_step
            || step == self.last_step;
        if is_due {
            // The log has room for all of it.
            screen::only_in_log(&progress.line(None));
            if let Err(error) = screen::not_in_log(&progress.line(width)) {
                self.lost.borrow_mut().get_or_insert(error);
            }
        }
        if let (Some(bar), Some(width)) = (&self.bar, width) {
            bar.set_position(step);
            bar.set_message(progress.bar(width));
        }
    }

    fn after(&mut self, metrics: &StepMetrics) -> ProgressLine {
        let latest = metrics.step_time_s;
        let usual = self
            .step_time_s
            .map_or(latest, |before| before + LATEST * (latest - before));
        self.step_time_s = Some(usual);
        let left = self.last_step.saturating_sub(metrics.step) as f64 * usual;
        ProgressLine {
            step: metrics.step,
            last_step: self.last_step,
            epoch: metrics.epoch + 1,
            epochs: self.epochs,
            loss: metrics.loss,
            lr: metrics.lr,
            grad_norm: metrics.grad_norm,
            tokens_per_s: metrics.tokens_per_s,
            mfu: metrics.mfu,
            step_time_s: latest,
            left: Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX),
        }
    }
}

impl Drop for Display {
    /// Nobody is to write above a bar that is gone.
    fn drop(&mut self) {
        self.finish();
    }
}

impl EventSink for Display {
    fn event(&mut self, event: TrainEvent) {
        match event {
            TrainEvent::Phase(name) => self.line(&format!("{name} ...")),
            TrainEvent::Progress { what, done, total } => self.progress(&what, done, total),
            TrainEvent::Summary(lines) | TrainEvent::Profile(lines) => {
                lines.iter().for_each(|line| self.line(line))
            }
            TrainEvent::Begin {
                first_step,
                last_step,
            } => self.begin(first_step, last_step),
            TrainEvent::Step(metrics) => self.step(&metrics),
            TrainEvent::Saving | TrainEvent::Evaluating => {}
            TrainEvent::Evaluated {
                step,
                eval_loss,
                perplexity,
                tokens,
                seconds,
            } => self.line(&format!(
                "evaluated after step {step}: eval loss {eval_loss:.4}, perplexity {perplexity:.2} ({tokens} tokens in {seconds:.1} s)"
            )),
            TrainEvent::Saved(saved) => {
                for warning in &saved.warnings {
                    self.line(&format!("warning: {warning}"));
                }
                self.saved(&saved.name, saved.step, saved.seconds, saved.blocked_s);
            }
            TrainEvent::SaveFailed { step, problem } => self.line(&format!(
                "warning: no checkpoint after step {step}: {problem}; training goes on"
            )),
            TrainEvent::End => self.finish(),
        }
    }
}

/// Columns of the terminal; one less than it has, because some break a line that ends in the last.
fn width() -> usize {
    let columns = Term::stderr().size_checked().map(|(_, columns)| columns);
    columns.map_or(USUAL_WIDTH, usize::from).saturating_sub(1)
}

fn styled_bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
}
