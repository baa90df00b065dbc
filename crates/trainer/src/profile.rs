//! `--profile`: what a rank did when, for a few steps, as a trace for Perfetto (or chrome://tracing) and as a table.
//!
//! Without a profiler the step pays one branch per span. With one, the beginning and the end of a span wait for the device:
//! what it was given before is none of the span's work, and what a span has launched is.

mod report;
mod trace;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use tandem_comm::{Observer, OperationEvent};
use tandem_tensor::Device;
use tandem_tensor::device::synchronize;

use crate::error::TrainError;
use crate::gemm_floor::LinearTime;

/// Steps before the first that is recorded: buffers are allocated and kernels are generated in them.
const WARM_UP: u64 = 2;

/// What a rank's own thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Taking a batch from the loader.
    Data,
    /// Agreeing with the other ranks on the batch and the number of targets.
    Agreement,
    /// The embedding's rows.
    Embedding,
    /// Forward of the layer with this index.
    Layer(usize),
    /// Final norm, head and loss, forward and backward.
    Head,
    /// Backward of the layer with this index.
    LayerBackward(usize),
    /// The embedding's gradient.
    EmbeddingBackward,
    /// What is left of the reduction of gradients, and their norm.
    GradientNorm,
    /// AdamW, and sending updated parameters where that is not left to run beside the next step.
    Optimizer,
    /// Copying the state for a checkpoint.
    Save,
    /// A forward pass over rows that are not trained on.
    Evaluation,
}

impl Activity {
    /// What is reported together: as the rows of a profile, and the parts of what `tandem_tensor::torch::recorder` records.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Agreement => "agreement",
            Self::Embedding | Self::EmbeddingBackward => "embedding",
            Self::Layer(_) => "layers, forward",
            Self::Head => "head and loss",
            Self::LayerBackward(_) => "layers, backward",
            Self::GradientNorm => "gradient norm",
            Self::Optimizer => "optimizer",
            Self::Save => "save",
            Self::Evaluation => "evaluation",
        }
    }
}

/// A span of one activity.
#[derive(Debug, Clone, Copy)]
struct Span {
    activity: Activity,
    start: Instant,
    end: Instant,
}

/// Time in which this rank's thread waited for a group.
#[derive(Debug, Clone)]
struct Wait {
    group: Arc<str>,
    start: Instant,
    end: Instant,
}

/// A recorded step.
#[derive(Debug, Clone, Copy)]
struct Step {
    number: u64,
    start: Instant,
    end: Instant,
}

#[derive(Debug, Default)]
struct Record {
    steps: Vec<Step>,
    spans: Vec<Span>,
    waits: Vec<Wait>,
    operations: Vec<OperationEvent>,
}

/// Records the steps of a window; shared with the process groups, which tell it what they do.
pub struct Profiler {
    /// Steps to record.
    length: u64,
    folder: PathBuf,
    recording: AtomicBool,
    record: Mutex<Record>,
    /// One moment on two clocks: spans are told by the first, and traces of several ranks agree on the second.
    origin: (Instant, SystemTime),
    /// Returns when the device has done what it was given.
    wait: Box<dyn Fn() + Send + Sync>,
}

impl Profiler {
    /// Records `length` steps on `device`, after two that warm up; traces go to `folder`.
    pub fn new(length: u64, folder: PathBuf, device: Device) -> Self {
        Self::waiting(length, folder, move || synchronize(device))
    }

    fn waiting(length: u64, folder: PathBuf, wait: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            wait: Box::new(wait),
            length,
            folder,
            recording: AtomicBool::new(false),
            record: Mutex::default(),
            origin: (Instant::now(), SystemTime::now()),
        }
    }

    /// The step `step` of a run from `first` to `last` begins. A run too short for the warm-up has less of it.
    pub(crate) fn begin_step(&self, step: u64, first: u64, last: u64) {
        let spare = (last + 1).saturating_sub(first).saturating_sub(self.length);
        let start = first + WARM_UP.min(spare);
        if (start..start + self.length).contains(&step) {
            let now = self.now();
            self.lock().steps.push(Step {
                number: step,
                start: now,
                end: now,
            });
            self.recording.store(true, Ordering::Relaxed);
        }
    }

    /// The step ends. Returns true when the record is complete: it was the last step to be recorded, or the last of all.
    pub(crate) fn end_step(&self, is_end: bool) -> bool {
        let was_recording = self.recording.swap(false, Ordering::Relaxed);
        let now = was_recording.then(|| self.now());
        let mut record = self.lock();
        if let (Some(now), Some(step)) = (now, record.steps.last_mut()) {
            step.end = now;
        }
        let is_long_enough = record.steps.len() as u64 == self.length;
        (was_recording && is_long_enough) || (is_end && !record.steps.is_empty())
    }

    /// Writes this rank's trace, `rank_{r}.json`, and of the first rank what its step's time is made of, `breakdown.json`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn write(&self, rank: usize) -> Result<(), TrainError> {
        let path = self.folder.join(format!("rank_{rank}.json"));
        trace::write(&self.lock(), self.origin, &path, rank)?;
        if rank > 0 {
            return Ok(());
        }
        let path = self.folder.join("breakdown.json");
        let breakdown = serde_json::to_string(&report::Breakdown::of(&self.lock()));
        breakdown
            .map_err(std::io::Error::from)
            .and_then(|text| tandem_files::write_whole(&path, text.as_bytes()))
            .map_err(|source| TrainError::Write { path, source })
    }

    /// The table: times by kind, communication, and how much of the computation is matrix products, whose rates are
    /// `products`.
    pub(crate) fn table(&self, products: &[LinearTime], micro_batches: usize) -> Vec<String> {
        let mut lines = report::lines(&self.lock(), products, micro_batches);
        lines.push(format!("traces are in {}", self.folder.display()));
        lines
    }

    /// The moment at which the device has done all that it was given.
    fn now(&self) -> Instant {
        (self.wait)();
        Instant::now()
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock()
    }

    fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Relaxed)
    }
}

/// A span that ends when it is dropped.
pub(crate) struct OpenSpan {
    profiler: Arc<Profiler>,
    activity: Activity,
    start: Instant,
}

/// Begins a span, if anybody records.
pub(crate) fn span(profiler: &Option<Arc<Profiler>>, activity: Activity) -> Option<OpenSpan> {
    let profiler = profiler.as_ref().filter(|it| it.is_recording())?;
    Some(OpenSpan {
        start: profiler.now(),
        profiler: Arc::clone(profiler),
        activity,
    })
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        let span = Span {
            activity: self.activity,
            start: self.start,
            end: self.profiler.now(),
        };
        self.profiler.lock().spans.push(span);
    }
}

impl Observer for Profiler {
    fn operation(&self, event: &OperationEvent) {
        if self.is_recording() {
            self.lock().operations.push(event.clone());
        }
    }

    fn waited(&self, group: &Arc<str>, start: Instant, end: Instant) {
        if self.is_recording() {
            self.lock().waits.push(Wait {
                group: Arc::clone(group),
                start,
                end,
            });
        }
    }
}

impl Record {
    /// How long the thread waited for others between two moments.
    fn waited_between(&self, start: Instant, end: Instant) -> Duration {
        self.waits
            .iter()
            .filter(|wait| wait.start >= start && wait.end <= end)
            .map(|wait| wait.end - wait.start)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm_floor::{LinearShape, LinearTime, Products};
    use crate::stopwatch::Seconds;
    use std::sync::atomic::AtomicUsize;
    use tandem_comm::Collective;

    const MS: Duration = Duration::from_millis(1);

    fn recorded(length: u64, first: u64, last: u64) -> Vec<u64> {
        let profiler = Profiler::new(length, PathBuf::new(), Device::Cpu);
        let is_complete = (first..=last).any(|step| {
            profiler.begin_step(step, first, last);
            profiler.end_step(step == last)
        });
        assert!(is_complete);
        let record = profiler.lock();
        record.steps.iter().map(|step| step.number).collect()
    }

    #[test]
    fn the_window_comes_after_a_warm_up_where_there_is_room() {
        assert_eq!(recorded(2, 1, 100), [3, 4]);
        assert_eq!(recorded(2, 41, 100), [43, 44]);
        assert_eq!(recorded(2, 1, 3), [2, 3]);
        assert_eq!(recorded(5, 1, 3), [1, 2, 3]);
    }

    #[test]
    fn nothing_is_recorded_outside_the_window() {
        let profiler = Arc::new(Profiler::new(1, PathBuf::new(), Device::Cpu));
        assert!(span(&None, Activity::Data).is_none());
        assert!(span(&Some(Arc::clone(&profiler)), Activity::Data).is_none());
        profiler.waited(&"tp".into(), Instant::now(), Instant::now());
        assert!(profiler.lock().waits.is_empty());
    }

    /// On a device that returns when work is launched, clocks are read when it is done.
    #[test]
    fn spans_and_steps_wait_for_the_device_while_recording() {
        let waits = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&waits);
        let wait = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let profiler = Some(Arc::new(Profiler::waiting(1, PathBuf::new(), wait)));
        let step = |number| {
            let it = profiler.as_ref().unwrap();
            it.begin_step(number, 1, 100);
            drop(span(&profiler, Activity::Data));
            drop(span(&profiler, Activity::Optimizer));
            it.end_step(false);
            waits.swap(0, Ordering::Relaxed)
        };
        // Two warm up, one is recorded: itself and two spans, each with a beginning and an end.
        assert_eq!([1, 2, 3, 4].map(step), [0, 0, 6, 0]);
    }

    /// One step of 100 ms: a layer of 60 ms, 10 of which it waits, and 30 ms of optimizer.
    fn sample() -> Profiler {
        let profiler = Profiler::new(1, PathBuf::new(), Device::Cpu);
        let start = profiler.origin.0;
        let group: Arc<str> = "tp".into();
        let at = |ms: u32| start + MS * ms;
        *profiler.lock() = Record {
            steps: vec![Step {
                number: 3,
                start,
                end: at(100),
            }],
            spans: vec![
                Span {
                    activity: Activity::Layer(0),
                    start,
                    end: at(60),
                },
                Span {
                    activity: Activity::Optimizer,
                    start: at(60),
                    end: at(90),
                },
            ],
            waits: vec![Wait {
                group: Arc::clone(&group),
                start: at(20),
                end: at(30),
            }],
            operations: vec![OperationEvent {
                group,
                collective: Collective::AllReduce,
                sequence: 7,
                bytes: 2_000_000,
                start: at(20),
                end: at(30),
                in_background: false,
                succeeded: true,
            }],
        };
        profiler
    }

    #[test]
    fn the_table_tells_computing_from_waiting() {
        let seconds = |wall| Seconds {
            wall,
            processor: 0.0,
        };
        let products = [LinearTime {
            shape: LinearShape {
                name: "q|k|v",
                tokens: 512,
                inputs: 896,
                outputs: 576,
                count: 1,
                products: Products::ALL,
                from_memory: true,
            },
            forward: seconds(0.01),
            input_gradient: seconds(0.02),
            weight_gradient: seconds(0.01),
        }];
        let text = report::lines(&sample().lock(), &products, 1).join("\n");
        let row = |name: &str| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(name));
            let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(row("layers, forward"), "layers, forward 50.0 50.0 %");
        assert_eq!(row("optimizer"), "optimizer 30.0 30.0 %");
        assert_eq!(row("waiting for tp"), "waiting for tp 10.0 10.0 %");
        assert_eq!(row("other"), "other 10.0 10.0 %");
        assert_eq!(row("step"), "step 100.0 100.0 %");
        assert!(text.contains("tp all_reduce"), "{text}");
        let breakdown = serde_json::to_value(report::Breakdown::of(&sample().lock())).unwrap();
        assert_eq!(
            (&breakdown["steps"][0], &breakdown["step_ms"]),
            (&3.into(), &100.0.into())
        );
        let part = |index: usize| {
            (
                &breakdown["parts"][index]["name"],
                &breakdown["parts"][index]["ms"],
            )
        };
        assert_eq!(part(0), (&"layers, forward".into(), &50.0.into()));
        assert_eq!(part(2), (&"waiting for tp".into(), &10.0.into()));
        // 40 ms of products in 50 ms of layers.
        assert!(text.contains("80 %"), "{text}");
    }

    #[test]
    fn the_trace_is_what_viewers_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile").join("rank_1.json");
        let profiler = sample();
        trace::write(&profiler.lock(), profiler.origin, &path, 1).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let named = |name: &str| {
            let found = events.iter().find(|event| event["name"] == name);
            found.unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        let layer = named("layer 0");
        assert_eq!(layer["ph"], "X");
        assert_eq!(layer["pid"], 1);
        assert_eq!(layer["dur"], 60_000.0);
        let operation = named("all_reduce");
        assert_eq!(operation["args"]["bytes"], 2_000_000);
        let offset = operation["ts"].as_f64().unwrap() - layer["ts"].as_f64().unwrap();
        assert!((offset - 20_000.0).abs() < 1.0, "{offset}");
        assert_ne!(operation["tid"], layer["tid"]);
        named("step 3");
        named("wait for tp");
    }
}
