//! Communicators: made, used by the collectives on streams, ended or aborted.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::exchange::{Exchange, Outcome};
use crate::fault::{self, Fault};
use crate::forbidden;

/// How often what never ends looks whether it was aborted.
const LOOK_AROUND: Duration = Duration::from_millis(1);

/// By how much a collective is late.
const LATE: Duration = Duration::from_millis(500);

/// What is wrong with a collective.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    #[default]
    None,
    Late,
    Stuck,
}

pub(super) struct Communicator {
    pub(super) rank: usize,
    pub(super) size: usize,
    links: Vec<Option<UnixStream>>,
    aborted: AtomicBool,
    /// What went wrong in the background: a status.
    pub(super) background: AtomicI32,
    /// Groups of collectives that were enqueued and are not done.
    unfinished: AtomicUsize,
    /// Calls that a thread is in.
    pub(super) calls: AtomicUsize,
}

static ALL: Mutex<Option<HashMap<usize, Arc<Communicator>>>> = Mutex::new(None);

impl Communicator {
    /// The handle of a new communicator.
    pub(super) fn register(rank: usize, size: usize, links: Vec<Option<UnixStream>>) -> usize {
        let communicator = Arc::new(Self {
            rank,
            size,
            links,
            aborted: AtomicBool::new(false),
            background: AtomicI32::new(0),
            unfinished: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
        });
        let handle = Arc::as_ptr(&communicator) as usize;
        ALL.lock()
            .get_or_insert_default()
            .insert(handle, communicator);
        handle
    }

    /// The communicator of a handle. The real library follows the pointer wherever it leads.
    pub(super) fn of(handle: usize, function: &str) -> Arc<Self> {
        let all = ALL.lock();
        match all.as_ref().and_then(|all| all.get(&handle)) {
            Some(communicator) => communicator.clone(),
            None => forbidden(&format!(
                "{function} is called with a communicator that has ended"
            )),
        }
    }

    fn unregister(handle: usize) {
        // Kept for ever: no later one may get its address, or a handle that is gone would be good again.
        if let Some(gone) = ALL.lock().as_mut().and_then(|all| all.remove(&handle)) {
            std::mem::forget(gone);
        }
    }

    pub(super) fn destroy(handle: usize) {
        let communicator = Self::of(handle, "ncclCommDestroy");
        if communicator.unfinished.load(Ordering::Acquire) > 0 {
            forbidden(
                "a communicator is destroyed while it has operations: they would have to be waited for, or aborted",
            );
        }
        Self::unregister(handle);
        communicator.close();
    }

    /// Ends what runs, wherever it is.
    pub(super) fn abort(handle: usize) {
        let communicator = Self::of(handle, "ncclCommAbort");
        communicator.aborted.store(true, Ordering::Release);
        Self::unregister(handle);
        while communicator.unfinished.load(Ordering::Acquire) > 0
            || communicator.calls.load(Ordering::Acquire) > 0
        {
            std::thread::sleep(LOOK_AROUND);
        }
        communicator.close();
    }

    /// The other members notice it.
    fn close(&self) {
        for link in self.links.iter().flatten() {
            // It may be closed from the other side already.
            let _closed = link.shutdown(std::net::Shutdown::Both);
        }
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    pub(super) fn wait_for_abort(&self) {
        while !self.is_aborted() {
            std::thread::sleep(LOOK_AROUND);
        }
    }

    /// One more group of collectives is under way.
    pub(super) fn begin(&self) {
        self.unfinished.fetch_add(1, Ordering::AcqRel);
    }

    /// Does what was begun, on a stream's thread. Whose peer is gone waits for it for ever, as kernels between GPUs do; between
    /// hosts, NCCL may notice.
    pub(super) fn perform(&self, exchange: Exchange, trouble: Trouble) {
        let outcome = match trouble {
            Trouble::Stuck => Outcome::Different,
            _ => exchange.run(&self.links, &|| self.is_aborted()),
        };
        if trouble == Trouble::Late {
            std::thread::sleep(LATE);
        }
        if outcome == Outcome::Lost
            && let Some(Fault::Async(status)) = fault::due("lost")
        {
            self.background.store(status, Ordering::Release);
        }
        if outcome != Outcome::Done {
            self.wait_for_abort();
        }
        self.unfinished.fetch_sub(1, Ordering::AcqRel);
    }
}
