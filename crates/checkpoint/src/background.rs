//! Writing while training goes on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use tandem_mesh::ShardSlice;

use crate::error::CheckpointError;
use crate::piece::{Piece, Role};
use crate::shard::{ShardReport, write_shard};
use crate::store::Store;

/// A state that is being copied.
#[derive(Debug)]
pub struct Copying(Receiver<()>);

impl Copying {
    /// Waits until it may change.
    pub fn wait(self) {
        // Nothing is ever sent: the other end goes when all is copied.
        let _ = self.0.recv();
    }
}

/// How much less the writing thread matters than training, in steps of `nice`.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// A copy of a rank's pieces, so that training may change the originals.
///
/// Its memory is kept from save to save: fresh memory costs a page fault for every page, several times the copy itself.
#[derive(Debug, Default)]
pub struct Snapshot {
    buffer: Vec<f32>,
    used: usize,
    pieces: Vec<(String, Role, ShardSlice, Range<usize>)>,
}

impl Snapshot {
    /// Forgets all pieces and keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.pieces.clear();
    }

    /// Adds a piece, whose elements `fill` writes straight into the snapshot.
    pub fn push<R>(
        &mut self,
        tensor: &str,
        role: Role,
        slice: ShardSlice,
        fill: impl FnOnce(&mut [f32]) -> R,
    ) -> R {
        let range = self.used..self.used + slice.numel();
        if self.buffer.len() < range.end {
            self.buffer.resize(range.end, 0.0);
        }
        self.used = range.end;
        let filled = fill(&mut self.buffer[range.clone()]);
        self.pieces.push((tensor.to_owned(), role, slice, range));
        filled
    }

    /// Makes room for `elements` more, in one allocation.
    pub fn reserve(&mut self, elements: usize) {
        let total = self.used + elements;
        if self.buffer.len() < total {
            self.buffer.resize(total, 0.0);
        }
    }

    /// The pieces.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        self.pieces
            .iter()
            .map(|(tensor, role, slice, range)| Piece {
                tensor,
                role: role.clone(),
                slice: slice.clone(),
                data: &self.buffer[range.clone()],
            })
            .collect()
    }

    /// Bytes of memory that it takes, with what it keeps for later.
    pub fn bytes(&self) -> usize {
        size_of_val(self.buffer.as_slice())
    }
}

/// A thread that writes one rank's shard. At most one save is under way.
///
/// It knows nothing of the other ranks: the caller gathers all reports and commits them.
#[derive(Debug)]
pub struct BackgroundWriter {
    store: Arc<dyn Store>,
    writing: Option<JoinHandle<(Result<ShardReport, CheckpointError>, Snapshot)>>,
    spare: Snapshot,
}

impl BackgroundWriter {
    /// A writer that has nothing to do yet.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            writing: None,
            spare: Snapshot::default(),
        }
    }

    /// Begins to write what `fill` puts into a snapshot, as the shard of `rank` in `folder`. It does so on the writer's thread:
    /// until that is done, which the result tells, nothing may change what `fill` reads. The snapshot is empty and has the
    /// memory of the last save.
    ///
    /// # Errors
    /// The result of the last save was not taken yet, or no thread can be started.
    pub fn start_copying(
        &mut self,
        folder: &str,
        rank: usize,
        fill: impl FnOnce(&mut Snapshot) + Send + 'static,
    ) -> Result<Copying, CheckpointError> {
        if self.writing.is_some() {
            return Err(CheckpointError::SaveInFlight);
        }
        let mut snapshot = std::mem::take(&mut self.spare);
        let (done, copying) = mpsc::channel::<()>();
        let (store, folder) = (self.store.clone(), folder.to_owned());
        let write = move || {
            // Training may have to wait for this part, so it is as urgent as training.
            fill(&mut snapshot);
            // Also when `fill` panics, the end of this channel is what the other side waits for.
            drop(done);
            yield_to_training();
            let result = write_shard(store.as_ref(), &folder, rank, &snapshot.pieces());
            (result, snapshot)
        };
        let thread = thread::Builder::new().name("checkpoint".to_owned());
        let writing = thread
            .spawn(write)
            .map_err(|error| CheckpointError::Thread {
                problem: format!("cannot be started: {error}"),
            })?;
        self.writing = Some(writing);
        Ok(Copying(copying))
    }

    /// The result of the save, once, when it has ended; `None` while it is under way or when there is none.
    pub fn poll(&mut self) -> Option<Result<ShardReport, CheckpointError>> {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            return self.wait();
        }
        None
    }

    /// Waits for the save to end; `None` when there is none.
    pub fn wait(&mut self) -> Option<Result<ShardReport, CheckpointError>> {
        let result = match self.writing.take()?.join() {
            Ok((result, mut snapshot)) => {
                snapshot.clear();
                self.spare = snapshot;
                result
            }
            Err(_) => Err(CheckpointError::Thread {
                problem: "panicked".to_owned(),
            }),
        };
        Some(result)
    }
}

/// Linux counts `nice` by thread, so this slows no other down. Elsewhere, or where it is refused, training merely waits a
/// little more.
fn yield_to_training() {
    #[cfg(target_os = "linux")]
    {
        let thread = rustix::thread::gettid();
        if let Err(error) = rustix::process::setpriority_process(Some(thread), NICENESS) {
            tracing::debug!(%error, "cannot lower the priority of the checkpoint thread");
        }
    }
}
