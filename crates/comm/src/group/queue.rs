//! One group's operations in order of submission, run by whoever waits for them or by the group's own thread.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::observe::OperationEvent;
use crate::group::operation::Operation;
use crate::group::work::{Pending, Work};

/// A transport: runs one operation at a time.
pub(crate) trait Backend: Send {
    fn execute(&mut self, operation: &Operation, place: Place) -> Result<()>;
}

/// Which thread runs an operation, and so whether it may keep a core busy while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The caller's, which has nothing else to do.
    Inline,
    /// The group's own, beside a computation that wants the core.
    Background,
}

/// The queue; dropping it abandons what is not done and closes the transport.
pub(crate) struct Queue {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    context: Arc<GroupContext>,
    /// Whoever holds this runs the operation at the front. Taken before `line`, never after. `None` once closed.
    backend: Mutex<Option<Box<dyn Backend>>>,
    line: Mutex<Line>,
    started: Condvar,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Arc<Job>>,
    /// Number of the last submitted operation.
    submitted: u64,
    /// Operations up to this number may be run by the background thread.
    started_up_to: u64,
    failed: Option<CommError>,
    closed: bool,
}

struct Job {
    sequence: u64,
    operation: Mutex<Option<Operation>>,
    outcome: OnceLock<Result<()>>,
}

impl Queue {
    pub(crate) fn new(context: Arc<GroupContext>, backend: Box<dyn Backend>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                context,
                backend: Mutex::new(Some(backend)),
                line: Mutex::default(),
                started: Condvar::new(),
            }),
            thread: Mutex::new(None),
        })
    }

    /// Appends an operation.
    ///
    /// # Errors
    /// [`CommError::Poisoned`] when an earlier operation failed.
    pub(crate) fn submit(self: &Arc<Self>, mut operation: Operation) -> Result<Work> {
        let mut line = self.shared.line.lock();
        if let Some(first) = &line.failed {
            return Err(self.shared.poisoned(first));
        }
        line.submitted += 1;
        operation.signature.sequence = line.submitted;
        let job = Arc::new(Job {
            sequence: line.submitted,
            operation: Mutex::new(Some(operation)),
            outcome: OnceLock::new(),
        });
        line.waiting.push_back(job.clone());
        drop(line);
        Ok(Work::new(Ticket {
            queue: Arc::downgrade(self),
            shared: self.shared.clone(),
            job,
        }))
    }

    /// Lets the background thread run everything up to `sequence`.
    fn start_up_to(&self, sequence: u64) {
        let mut line = self.shared.line.lock();
        if line.started_up_to >= sequence {
            return;
        }
        line.started_up_to = sequence;
        drop(line);
        self.shared.started.notify_one();
        let mut thread = self.thread.lock();
        if thread.is_some() {
            return;
        }
        let shared = self.shared.clone();
        // Most groups of a run are only ever waited for; they get no thread.
        *thread = std::thread::Builder::new()
            .name(format!("comm-{}", self.shared.context.name))
            .spawn(move || shared.run_started())
            .map_err(|error| {
                // The operations still run when somebody waits for them.
                tracing::warn!(%error, "no background thread for a group: nothing overlaps");
            })
            .ok();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.context.closing.store(true, Ordering::Relaxed);
        self.shared.line.lock().closed = true;
        self.shared.started.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // It ends soon, because whatever waits for a peer looks at `closing`; a panic there was already printed.
            let _ended = thread.join();
        }
        // Dropped here, even while a `Work` is still around, so that the peers see this rank leave the group.
        self.shared.backend.lock().take();
    }
}

impl Shared {
    /// Runs the operation at the front; the caller holds the backend.
    fn run_front(&self, backend: &mut Option<Box<dyn Backend>>, place: Place, up_to: u64) {
        let (job, failed) = {
            let mut line = self.line.lock();
            if line.waiting.front().is_none_or(|job| job.sequence > up_to) {
                return;
            }
            let Some(job) = line.waiting.pop_front() else {
                return;
            };
            (job, line.failed.clone())
        };
        let operation = job.operation.lock().take();
        let outcome = match (operation, backend, failed) {
            (_, _, Some(first)) => Err(self.poisoned(&first)),
            (Some(operation), Some(backend), None) => {
                let outcome = self.execute(backend.as_mut(), &operation, place);
                if let Err(error) = &outcome {
                    self.line.lock().failed = Some(error.clone());
                    (self.context.escalate)(error);
                }
                outcome
            }
            (operation, _, None) => Err(CommError::Abandoned {
                site: operation.map_or_else(
                    || self.context.creation(),
                    |operation| self.context.site(&operation.signature),
                ),
            }),
        };
        let _only_runner = job.outcome.set(outcome);
    }

    fn execute(
        &self,
        backend: &mut dyn Backend,
        operation: &Operation,
        place: Place,
    ) -> Result<()> {
        let Some(observer) = self.context.observer.get() else {
            return backend.execute(operation, place);
        };
        let start = Instant::now();
        let outcome = backend.execute(operation, place);
        observer.operation(&OperationEvent {
            group: self.context.name.clone(),
            collective: operation.signature.collective,
            sequence: operation.signature.sequence,
            bytes: operation.bytes(),
            start,
            end: Instant::now(),
            in_background: place == Place::Background,
            succeeded: outcome.is_ok(),
        });
        outcome
    }

    /// The background thread.
    fn run_started(&self) {
        loop {
            let mut line = self.line.lock();
            loop {
                let front = line.waiting.front().map(|job| job.sequence);
                if line.closed {
                    return;
                }
                if front.is_some_and(|sequence| sequence <= line.started_up_to) {
                    break;
                }
                self.started.wait(&mut line);
            }
            let up_to = line.started_up_to;
            drop(line);
            let mut backend = self.backend.lock();
            self.run_front(&mut backend, Place::Background, up_to);
        }
    }

    fn poisoned(&self, first: &CommError) -> CommError {
        CommError::Poisoned {
            group: self.context.name.clone(),
            first: Box::new(first.clone()),
        }
    }
}

/// What a [`Work`] holds.
struct Ticket {
    /// Weak, so that forgotten work does not keep a group open.
    queue: std::sync::Weak<Queue>,
    shared: Arc<Shared>,
    job: Arc<Job>,
}

impl Ticket {
    fn run(&self) -> Result<()> {
        loop {
            if let Some(outcome) = self.job.outcome.get() {
                return outcome.clone();
            }
            // Whoever runs something now may be running this very job, so look again after getting the lock.
            let mut backend = self.shared.backend.lock();
            if self.job.outcome.get().is_none() {
                self.shared
                    .run_front(&mut backend, Place::Inline, self.job.sequence);
            }
        }
    }
}

impl Pending for Ticket {
    fn start(&mut self) {
        if self.job.outcome.get().is_some() {
            return;
        }
        if let Some(queue) = self.queue.upgrade() {
            queue.start_up_to(self.job.sequence);
        }
    }

    fn wait(&mut self) -> Result<()> {
        let Some(observer) = self.shared.context.observer.get() else {
            return self.run();
        };
        let start = Instant::now();
        let outcome = self.run();
        observer.waited(&self.shared.context.name, start, Instant::now());
        outcome
    }

    fn is_finished(&self) -> bool {
        self.job.outcome.get().is_some()
    }
}
