//! Watching over a communicator: NCCL waits for a missing peer for ever, so somebody else must notice and abort.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaEvent, DriverError};
use parking_lot::{Condvar, Mutex};

use crate::collective::{Collective, Element, Signature};
use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::meet::board::Board;
use crate::transport::device::{CudaDevice, words};
use crate::transport::nccl::inquiry::Inquiry;
use crate::transport::nccl::library::{Communicator, Library, UniqueId};

/// How often to look.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// When an operation that does not end becomes a question to the others; sooner where the timeout is short.
const ASK_AFTER: Duration = Duration::from_secs(5);

/// How many of them are asked then; when half the timeout has passed, all are.
const NEIGHBOURS: usize = 8;

/// How long to wait for the news of a death that NCCL has noticed first: it says that a peer is gone, but not which.
const EXPLANATION_WAIT: Duration = Duration::from_secs(2);

/// How long an operation may still take when a member has said goodbye. It had done its part, or it never will.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a thread may be in a call of NCCL that another thread wants to abort. A communicator that is aborted is gone, so
/// no call may be about to begin; a call that takes this long waits for peers, and the abort ends it.
const CALL_PATIENCE: Duration = Duration::from_secs(1);

/// A communicator and the thread that watches it.
pub(super) struct Watch {
    context: Arc<GroupContext>,
    library: Arc<Library>,
    state: Mutex<State>,
    /// No thread is in a call any more.
    returned: Condvar,
    followed: Mutex<Option<Sender<Followed>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    /// `None` once ended.
    communicator: Option<Communicator>,
    /// The call that a thread is in: connections are made on first use, so it may wait for peers too.
    launching: Option<(Signature, Instant)>,
    /// The first failure, with the number of the operation.
    failed: Option<(u64, CommError)>,
}

/// What this rank has raised an alarm for.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Alarm {
    /// The operation.
    sequence: u64,
    /// It was the second one, before the timeout.
    is_last: bool,
}

/// An operation on the stream.
pub(super) struct Followed {
    /// The event behind it.
    pub(super) done: Arc<CudaEvent>,
    pub(super) signature: Signature,
    /// Somebody has waited for it.
    pub(super) is_wanted: Arc<AtomicBool>,
}

impl Watch {
    /// Joins the communicator `id` and starts watching.
    pub(super) fn start(
        context: Arc<GroupContext>,
        library: Arc<Library>,
        cuda: Arc<CudaDevice>,
        board: Board,
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
            returned: Condvar::new(),
            followed: Mutex::new(Some(sender)),
            thread: Mutex::new(None),
        });
        let watching = watch.clone();
        let inquiry = Inquiry::new(watch.context.clone(), board);
        let name = format!("nccl-{}", watch.context.name);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || watching.run(&cuda, &receiver, inquiry))
            .map_err(|error| CommError::System {
                what: "start a thread",
                site: watch.context.creation(),
                source: Arc::new(error),
            })?;
        *watch.thread.lock() = Some(thread);
        Ok(watch)
    }

    /// Fails when the operation `number` failed, or one before it.
    pub(super) fn check(&self, number: u64) -> Result<()> {
        match &self.state.lock().failed {
            Some((failed, error)) if *failed == number => Err(error.clone()),
            Some((failed, first)) if *failed < number => Err(CommError::Poisoned {
                group: self.context.name.clone(),
                first: Box::new(first.clone()),
            }),
            _ => Ok(()),
        }
    }

    /// Fails when any operation has failed.
    pub(super) fn first_failure(&self) -> Result<()> {
        match &self.state.lock().failed {
            Some((_, error)) => Err(error.clone()),
            None => Ok(()),
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
            let communicator = state.communicator;
            state.launching = communicator.map(|_| (*signature, Instant::now()));
            communicator
        };
        let outcome = match communicator {
            Some(communicator) => call(&self.library, communicator),
            None => Err("the communicator was aborted".to_owned()),
        };
        self.state.lock().launching = None;
        self.returned.notify_all();
        // If the watch ended it, that is the reason, not what NCCL says about it.
        self.check(signature.sequence)?;
        outcome.map_err(|reason| self.failed("NCCL", reason, signature))
    }

    /// Watches an enqueued operation until it is done.
    pub(super) fn follow(&self, operation: Followed) {
        if let Some(sender) = &*self.followed.lock() {
            // The receiver lives as long as the thread, which ends after the sender.
            let _sent = sender.send(operation);
        }
    }

    /// Ends the communicator and the thread, once what somebody has waited for is done.
    pub(super) fn stop(&self) {
        self.followed.lock().take();
        if let Some(thread) = self.thread.lock().take() {
            let _ended = thread.join();
        }
    }

    /// The error of an operation that the driver refused. The group is of no more use: the peers have enqueued theirs.
    pub(super) fn cuda_failed(&self, error: &DriverError, signature: &Signature) -> CommError {
        self.failed("CUDA", words(error), signature)
    }

    fn failed(&self, library: &'static str, reason: String, signature: &Signature) -> CommError {
        let error = self.device_error(library, reason, signature);
        self.fail(error.clone());
        error
    }

    fn device_error(
        &self,
        library: &'static str,
        reason: String,
        signature: &Signature,
    ) -> CommError {
        CommError::Device {
            library,
            reason,
            site: self.context.site(signature),
        }
    }

    fn run(&self, cuda: &CudaDevice, receiver: &Receiver<Followed>, mut inquiry: Inquiry) {
        if let Err(error) = cuda.bind() {
            tracing::warn!(%error, "collectives are not watched");
        }
        let mut running: VecDeque<Followed> = VecDeque::new();
        let mut since = Instant::now();
        let mut is_stopping = false;
        let mut alarm = Alarm::default();
        let mut gone = None;
        loop {
            let received = match is_stopping {
                false => receiver.recv_timeout(LOOK_AROUND),
                true => {
                    std::thread::sleep(Duration::from_millis(1));
                    Err(RecvTimeoutError::Disconnected)
                }
            };
            is_stopping = matches!(received, Err(RecvTimeoutError::Disconnected));
            if running.is_empty() {
                since = Instant::now();
            }
            for operation in received.ok().into_iter().chain(receiver.try_iter()) {
                inquiry.remember(&operation.signature);
                running.push_back(operation);
            }
            // If the store is gone, so is rank 0, as `look` will say.
            let _told = inquiry.respond(NEIGHBOURS);
            if let Err(error) = inquiry.compare() {
                self.fail(error);
            }
            let mut broken = None;
            while let Some(first) = running.front() {
                match first.done.try_is_complete() {
                    Ok(true) => {
                        running.pop_front();
                        since = Instant::now();
                    }
                    Ok(false) => break,
                    Err(error) => {
                        broken = Some((error, first.signature));
                        break;
                    }
                }
            }
            if let Some((error, signature)) = broken {
                self.cuda_failed(&error, &signature);
            }
            if self.state.lock().failed.is_some() {
                // Whatever ran was aborted with the communicator.
                running.clear();
            }
            let is_wanted = |operation: &Followed| operation.is_wanted.load(Ordering::Acquire);
            if is_stopping && !running.iter().any(is_wanted) {
                let mut done = inquiry.done();
                if let Some(first) = running.front() {
                    let site = self.context.site(&first.signature);
                    let abandoned = CommError::Abandoned { site };
                    done = first.signature.sequence - 1;
                    self.state.lock().failed = Some((first.signature.sequence, abandoned));
                }
                inquiry.leave(done);
                return self.end(running.is_empty());
            }
            let launching = self.state.lock().launching;
            let oldest = running
                .front()
                .map(|first| (first.signature, since))
                .or(launching);
            if let Some((signature, since)) = oldest
                && let Err(error) =
                    self.look(&signature, since, (&mut inquiry, &mut alarm, &mut gone))
            {
                self.fail(error);
            }
        }
    }

    /// Looks why an operation that is under way `since` then is not done.
    fn look(
        &self,
        signature: &Signature,
        since: Instant,
        (inquiry, alarm, gone): (&mut Inquiry, &mut Alarm, &mut Option<(u64, Instant)>),
    ) -> Result<()> {
        let own = self.context.rank;
        let others = self.context.ranks.iter().enumerate();
        let peers: Vec<usize> = others
            .filter_map(|(member, rank)| (member != own).then_some(*rank))
            .collect();
        // Whoever failed; then those who said goodbye, which is no failure if they had done their part of it.
        self.context.check_waiting(&[], signature)?;
        if let Err(error) = self.context.check_waiting(&peers, signature) {
            let (sequence, since) = gone.get_or_insert((signature.sequence, Instant::now()));
            if *sequence != signature.sequence {
                *gone = None;
            } else if since.elapsed() > GOODBYE_PATIENCE {
                return Err(error);
            }
        }
        if let Err(reason) = self.asynchronous_error() {
            let begin = Instant::now();
            while begin.elapsed() < EXPLANATION_WAIT {
                self.context.check_waiting(&peers, signature)?;
                std::thread::sleep(LOOK_AROUND);
            }
            return Err(self.device_error("NCCL", reason, signature));
        }
        let (waited, timeout) = (since.elapsed(), self.context.timeout);
        if waited < ASK_AFTER.min(timeout / 8) {
            return Ok(());
        }
        inquiry.remember(signature);
        let now = Alarm {
            sequence: signature.sequence,
            is_last: waited > timeout / 2,
        };
        if *alarm != now {
            *alarm = now;
            inquiry.raise()?;
        }
        let count = match now.is_last {
            true => peers.len(),
            false => NEIGHBOURS,
        };
        inquiry.ask(count)?;
        inquiry.compare()?;
        inquiry.look_for_leavers(signature)?;
        if waited < timeout {
            return Ok(());
        }
        let missing = inquiry.missing(signature);
        Err(CommError::Timeout {
            // All are there, and none gets on: then it may be any.
            ranks: if missing.is_empty() { peers } else { missing },
            timeout,
            site: self.context.site(signature),
        })
    }

    /// What NCCL has noticed in the background. Under the lock, so that nobody ends the communicator meanwhile.
    fn asynchronous_error(&self) -> Result<(), String> {
        match self.state.lock().communicator {
            Some(communicator) => self.library.asynchronous_error(communicator),
            None => Ok(()),
        }
    }

    /// Records the failure, tells the world and aborts what runs.
    fn fail(&self, error: CommError) {
        // Others come from the store, and concern all operations.
        let number = error.site().map_or(0, |site| site.sequence);
        let mut state = self.state.lock();
        if state.failed.is_some() {
            return;
        }
        state.failed = Some((number, error.clone()));
        drop(state);
        (self.context.escalate)(&error);
        self.end(false);
    }

    fn end(&self, is_idle: bool) {
        let mut state = self.state.lock();
        // From here on nobody begins a call.
        let communicator = state.communicator.take();
        let begin = Instant::now();
        while state.launching.is_some() && begin.elapsed() < CALL_PATIENCE {
            self.returned.wait_for(&mut state, LOOK_AROUND);
        }
        drop(state);
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
    cuda: &Arc<CudaDevice>,
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
            .bind()
            .map_err(|error| ("CUDA", words(&error)))
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
            Ok(Err((library, reason))) => {
                let error = failed(library, reason);
                // The others are in the same call and wait for this rank.
                (context.escalate)(&error);
                return Err(error);
            }
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
