//! Rank 0's part: making a checkpoint of the shards, and looking after the list of checkpoints, on a thread.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use tandem_checkpoint::{NewCheckpoint, RunDir, ShardReport, TensorSpec, TrainState, commit};

/// What a commit did besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Committed {
    /// Older checkpoints that were deleted.
    pub deleted: Vec<String>,
    /// What did not work, but does no harm to the checkpoint.
    pub warnings: Vec<String>,
}

/// The experiment's folder, and the thread that is at work in it.
pub(super) struct Committer {
    run: Arc<Mutex<RunDir>>,
    keeps_list: bool,
    thread: Option<JoinHandle<Result<Committed, String>>>,
}

impl Committer {
    pub fn new(run: RunDir, keeps_list: bool) -> Self {
        Self {
            run: Arc::new(Mutex::new(run)),
            keeps_list,
            thread: None,
        }
    }

    /// Names the next checkpoint.
    pub fn begin(&self) -> NewCheckpoint {
        self.run.lock().begin()
    }

    /// Removes what a failed save has left; what cannot be removed now will be at the next start.
    pub fn discard(&self, new: &NewCheckpoint) {
        discard(&self.run.lock(), new);
    }

    /// Begins to commit.
    pub fn start(
        &mut self,
        new: NewCheckpoint,
        tensors: Arc<[TensorSpec]>,
        reports: Vec<ShardReport>,
        state: TrainState,
    ) -> Result<(), String> {
        let (run, keeps_list) = (Arc::clone(&self.run), self.keeps_list);
        let work = move || {
            let mut run = run.lock();
            commit_and_register(&mut run, keeps_list, &new, &tensors, reports, state)
        };
        let thread = thread::Builder::new().name("commit".to_owned());
        match thread.spawn(work) {
            Ok(thread) => {
                self.thread = Some(thread);
                Ok(())
            }
            Err(error) => Err(format!("cannot start the thread that commits: {error}")),
        }
    }

    /// The result, once, when it is there.
    pub fn poll(&mut self) -> Option<Result<Committed, String>> {
        if !self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            return None;
        }
        match self.thread.take()?.join() {
            Ok(result) => Some(result),
            Err(_) => Some(Err("the thread that commits panicked".to_owned())),
        }
    }
}

fn discard(run: &RunDir, new: &NewCheckpoint) {
    if let Err(error) = run.discard(new) {
        tracing::warn!(%error, "cannot remove what a failed save has left");
    }
}

fn commit_and_register(
    run: &mut RunDir,
    keeps_list: bool,
    new: &NewCheckpoint,
    tensors: &[TensorSpec],
    reports: Vec<ShardReport>,
    state: TrainState,
) -> Result<Committed, String> {
    let store = Arc::clone(run.store());
    if let Err(error) = commit(store.as_ref(), new, tensors, reports, state) {
        discard(run, new);
        return Err(error.to_string());
    }
    if !keeps_list {
        return Ok(Committed::default());
    }
    // The checkpoint exists now, whatever happens to the list: it is made anew from the folders at the next start.
    Ok(match run.register(&new.folder) {
        Ok(registered) => Committed {
            deleted: registered.deleted.into_iter().map(String::from).collect(),
            warnings: registered
                .not_deleted
                .into_iter()
                .map(|(name, error)| format!("cannot delete {name}: {error}"))
                .collect(),
        },
        Err(error) => Committed {
            deleted: Vec::new(),
            warnings: vec![format!("cannot list {}: {error}", new.folder)],
        },
    })
}
