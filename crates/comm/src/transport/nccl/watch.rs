//! Watching over a communicator: NCCL waits for a missing peer for ever, so somebody else must notice and abort.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, DriverError};
use parking_lot::Mutex;

use crate::collective::{Collective, Element, Signature};
use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::transport::nccl::library::{Communicator, Library, UniqueId};

/// How often to look.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// A communicator and the thread that watches it.
pub(super) struct Watch {
    context: Arc<GroupContext>,
    library: Arc<Library>,
    state: Mutex<State>,
    followed: Mutex<Option<Sender<Followed>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    /// `None` once ended.
    communicator: Option<Communicator>,
    /// The call that a thread is in: connections are made on first use, so it may wait for peers too.
    launching: Option<(Signature, Instant)>,
    failed: Option<CommError>,
}

/// An operation on the stream and the event behind it.
type Followed = (Arc<CudaEvent>, Signature);

impl Watch {
    /// Joins the communicator `id` and starts watching.
    pub(super) fn start(
        context: Arc<GroupContext>,
        library: Arc<Library>,
        cuda: Arc<CudaContext>,
        id: UniqueId,
    ) -> Result<Arc<Self>> {
        let communicator = join(&context, &library, &cuda, id)?;
        let (sender, receiver) = mpsc::channel();
        let watch = Arc::new(Self {
            context,
            library,
            state: Mutex::new(State {
                communicator: Some(communicator),
                launching: None,
                failed: None,
            }),
            followed: Mutex::new(Some(sender)),
            thread: Mutex::new(None),
        });
        let watching = watch.clone();
        let name = format!("nccl-{}", watch.context.name);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || watching.run(&cuda, &receiver))
            .map_err(|error| CommError::System {
                what: "start a thread",
                site: watch.context.creation(),
                source: Arc::new(error),
            })?;
        *watch.thread.lock() = Some(thread);
        Ok(watch)
    }

    /// Fails when the group has failed.
    pub(super) fn check(&self) -> Result<()> {
        match &self.state.lock().failed {
            None => Ok(()),
            Some(first) => Err(CommError::Poisoned {
                group: self.context.name.clone(),
                first: Box::new(first.clone()),
            }),
        }
    }

    /// Runs `call`, which enqueues an operation, under watch.
    pub(super) fn launch(
        &self,
        signature: &Signature,
        call: impl FnOnce(&Library, Communicator) -> Result<(), String>,
    ) -> Result<()> {
        let communicator = {
            let mut state = self.state.lock();
            state.launching = Some((*signature, Instant::now()));
            state.communicator
        };
        let outcome = match communicator {
            Some(communicator) => call(&self.library, communicator),
            None => Err("the communicator was aborted".to_owned()),
        };
        self.state.lock().launching = None;
        // If the watch ended it, that is the reason, not what NCCL says about it.
        self.check()?;
        outcome.map_err(|reason| {
            let error = self.nccl_error(reason, signature);
            self.fail(error.clone());
            error
        })
    }

    /// Watches an enqueued operation until `done`.
    pub(super) fn follow(&self, done: Arc<CudaEvent>, signature: Signature) {
        if let Some(sender) = &*self.followed.lock() {
            // The receiver lives as long as the thread, which ends after the sender.
            let _sent = sender.send((done, signature));
        }
    }

    /// Ends the communicator and the thread.
    pub(super) fn stop(&self) {
        self.followed.lock().take();
        if let Some(thread) = self.thread.lock().take() {
            let _ended = thread.join();
        }
    }

    pub(super) fn cuda_error(&self, error: &DriverError, signature: &Signature) -> CommError {
        CommError::Device {
            library: "CUDA",
            reason: error.to_string(),
            site: self.context.site(signature),
        }
    }

    fn nccl_error(&self, reason: String, signature: &Signature) -> CommError {
        CommError::Device {
            library: "NCCL",
            reason,
            site: self.context.site(signature),
        }
    }

    fn run(&self, cuda: &Arc<CudaContext>, receiver: &Receiver<Followed>) {
        if let Err(error) = cuda.bind_to_thread() {
            tracing::warn!(%error, "collectives are not watched");
        }
        let mut running: VecDeque<Followed> = VecDeque::new();
        let mut since = Instant::now();
        loop {
            let received = receiver.recv_timeout(LOOK_AROUND);
            let is_stopping = matches!(received, Err(RecvTimeoutError::Disconnected));
            if running.is_empty() {
                since = Instant::now();
            }
            running.extend(received.ok());
            while running.front().is_some_and(|(done, _)| done.is_complete()) {
                running.pop_front();
                since = Instant::now();
            }
            if is_stopping {
                return self.end(running.is_empty());
            }
            let launching = self.state.lock().launching;
            let oldest = running
                .front()
                .map(|(_, signature)| (*signature, since))
                .or(launching);
            if let Some((signature, since)) = oldest
                && let Err(error) = self.look(&signature, since)
            {
                self.fail(error);
                // Whatever runs was aborted with the communicator.
                running.clear();
            }
        }
    }

    fn look(&self, signature: &Signature, since: Instant) -> Result<()> {
        if let Some(communicator) = self.state.lock().communicator {
            let error = self.library.asynchronous_error(communicator);
            error.map_err(|reason| self.nccl_error(reason, signature))?;
        }
        let own = self.context.rank;
        let others = self.context.ranks.iter().enumerate();
        let peers: Vec<usize> = others
            .filter_map(|(member, rank)| (member != own).then_some(*rank))
            .collect();
        self.context.check_waiting(&peers, signature)?;
        if since.elapsed() < self.context.timeout {
            return Ok(());
        }
        Err(CommError::Timeout {
            // NCCL does not tell which of them it is.
            ranks: peers,
            timeout: self.context.timeout,
            site: self.context.site(signature),
        })
    }

    /// Records the failure, tells the world and aborts what runs.
    fn fail(&self, error: CommError) {
        let mut state = self.state.lock();
        if state.failed.is_none() {
            state.failed = Some(error.clone());
        }
        drop(state);
        (self.context.escalate)(&error);
        self.end(false);
    }

    fn end(&self, is_idle: bool) {
        let communicator = self.state.lock().communicator.take();
        if let Some(communicator) = communicator
            && let Err(error) = self.library.end(communicator, is_idle)
        {
            tracing::warn!(error, "a communicator did not end well");
        }
    }
}

/// Joins on a thread of its own, which is left behind if the others do not come.
fn join(
    context: &Arc<GroupContext>,
    library: &Arc<Library>,
    cuda: &Arc<CudaContext>,
    id: UniqueId,
) -> Result<Communicator> {
    let (rank, size) = (context.rank, context.size());
    let failed = |library, reason: String| CommError::Device {
        library,
        reason,
        site: context.creation(),
    };
    let (sender, receiver) = mpsc::channel();
    let (joining, device) = (library.clone(), cuda.clone());
    let join = move || {
        let joined = device
            .bind_to_thread()
            .map_err(|error| ("CUDA", error.to_string()))
            .and_then(|()| {
                joining
                    .join(id, rank, size)
                    .map_err(|reason| ("NCCL", reason))
            });
        // Nobody is interested any more if this fails.
        let _sent = sender.send(joined);
    };
    std::thread::Builder::new()
        .name("nccl-join".to_owned())
        .spawn(join)
        .map_err(|error| failed("NCCL", format!("no thread to join the group: {error}")))?;
    let begin = Instant::now();
    let creation = Signature {
        collective: Collective::NewGroup,
        reduce: None,
        element: Element::U8,
        root: 0,
        elements: 0,
        layout: 0,
        sequence: 0,
    };
    loop {
        match receiver.recv_timeout(LOOK_AROUND) {
            Ok(Ok(communicator)) => return Ok(communicator),
            Ok(Err((library, reason))) => return Err(failed(library, reason)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed("NCCL", "joining ended without a result".to_owned()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        context.check_waiting(&context.ranks, &creation)?;
        if begin.elapsed() >= context.timeout {
            return Err(CommError::Timeout {
                ranks: context.ranks.clone(),
                timeout: context.timeout,
                site: context.creation(),
            });
        }
    }
}
