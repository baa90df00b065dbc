//! What a person sees while a run goes: a progress bar on a terminal, plain lines elsewhere.

use std::cell::RefCell;
use std::io::{Error, IsTerminal};
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tandem_launch::output::redacted;
use tandem_trainer::{EventSink, StepMetrics, TrainEvent};

use crate::show::screen;

/// Shows events on standard error (standard output stays free for results).
pub struct Display {
    bar: Option<ProgressBar>,
    preparing: Option<String>,
    is_terminal: bool,
    log_interval: u64,
    last_step: u64,
    /// Why a line could not be written.
    lost: RefCell<Option<Error>>,
}

impl Display {
    /// A display that, without a terminal, prints a line every `log_interval` steps.
    pub fn new(log_interval: u64) -> Self {
        Self {
            bar: None,
            preparing: None,
            is_terminal: std::io::stderr().is_terminal(),
            log_interval: log_interval.max(1),
            last_step: 0,
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
        self.last_step = last_step;
        if self.is_terminal {
            let bar = styled_bar(last_step, "step {pos}/{len} [{wide_bar}] {eta} left  {msg}");
            bar.set_position(first_step.saturating_sub(1));
            self.set_bar(bar);
        }
    }

    fn step(&self, metrics: &StepMetrics) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(metrics.step);
                bar.set_message(numbers(metrics));
            }
            None => {
                let due = metrics.step.is_multiple_of(self.log_interval)
                    || metrics.step == 1
                    || metrics.step == self.last_step;
                if due {
                    let left = self.last_step.saturating_sub(metrics.step);
                    let left = Duration::from_secs_f64(left as f64 * metrics.step_time_s);
                    self.line(&format!(
                        "step {}/{}  epoch {}  {}  {} left",
                        metrics.step,
                        self.last_step,
                        metrics.epoch,
                        numbers(metrics),
                        HumanDuration(left),
                    ));
                }
            }
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

fn numbers(metrics: &StepMetrics) -> String {
    format!(
        "loss {:.4}  lr {:.2e}  grad norm {:.3}  {:.0} tokens/s  {:.0}% of GEMM rate  {:.3} s/step",
        metrics.loss,
        metrics.lr,
        metrics.grad_norm,
        metrics.tokens_per_s,
        100.0 * metrics.gemm_fraction,
        metrics.step_time_s,
    )
}

fn styled_bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
}
