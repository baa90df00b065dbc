//! A submitted operation, from the caller's side.

use crate::error::Result;

/// An operation of a group that was submitted and may not have begun.
///
/// Like a future it does nothing by itself: [`wait`](Work::wait) runs it on the calling thread, without a hop to
/// another thread, which is what latency-critical collectives want; [`start`](Work::start) hands it to the group's own
/// thread, so that it overlaps with computation until `wait` is called. Operations of one group run in the order of
/// submission whoever runs them: both functions bring earlier operations along.
///
/// It keeps the tensors alive that it reads and writes. Between submission and `wait` the caller must neither write
/// to them nor read the result.
///
/// Dropping it without waiting hands it to the group's thread as `start` does, because the peers take part in it and
/// would wait for this rank; its outcome then shows in the group's later operations only. Dropping the *group* abandons
/// what is not done: peers that wait for it get an error that this rank left.
#[must_use = "an operation is not done before `wait` returns"]
pub struct Work {
    pending: Option<Box<dyn Pending>>,
}

/// What a transport knows of one submitted operation.
pub(crate) trait Pending: Send {
    /// Lets it run without the caller.
    fn start(&mut self);
    /// Blocks until it is done, running it if need be.
    fn wait(&mut self) -> Result<()>;
    fn is_finished(&self) -> bool;
}

impl Work {
    pub(crate) fn new(pending: impl Pending + 'static) -> Self {
        Self {
            pending: Some(Box::new(pending)),
        }
    }

    /// An operation that needed nobody else and is done.
    pub(crate) fn finished() -> Self {
        Self { pending: None }
    }

    /// Lets the operation run on the group's own thread from now on.
    pub fn start(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.start();
        }
    }

    /// Returns when the result is in the tensors.
    ///
    /// # Errors
    /// What went wrong with this operation, or with an earlier one of the group.
    pub fn wait(mut self) -> Result<()> {
        match self.pending.take() {
            Some(mut pending) => pending.wait(),
            None => Ok(()),
        }
    }

    /// Whether `wait` would return at once.
    pub fn is_finished(&self) -> bool {
        self.pending
            .as_ref()
            .is_none_or(|pending| pending.is_finished())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.start();
    }
}
