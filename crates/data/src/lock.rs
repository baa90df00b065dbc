//! One process at a time, by a lock on a file that the system releases when its holder dies.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

/// Held until it is dropped.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Waits for the lock on the file at `path`, which is made if it is not there. `task` says in the log what its holder
    /// does.
    ///
    /// The file stays: were it removed, two processes could hold locks on two files of the same name.
    pub(crate) fn acquire(path: &Path, task: &str) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!("waiting for another process: {task}");
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(Self { _file: file })
    }
}
