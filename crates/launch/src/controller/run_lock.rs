//! `.lock` in the run's folder: one controller at a time.
//!
//! The kernel's lock on the file (flock) decides, because it ends with its owner however that dies. The file's text
//! says who the owner is. Where the file system has no such locks, the text decides: an owner on this host that does
//! not exist any more has lost it.

use crate::process_table::ProcessId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use tandem_files::{open_own, read_small};

const FILE_NAME: &str = ".lock";

/// What a file of a run may have that is read whole: one that is started again ten thousand times writes less.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;

/// The controller that holds, or held, a run's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockOwner {
    /// Its process id.
    pub pid: u32,
    /// The host that it runs on.
    pub host: String,
    /// When it took the lock, UTC.
    pub since: String,
    /// Tells it from a later process with the same id.
    start_ticks: u64,
}

/// Why the run's folder cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else works there.
    #[error(
        "another controller runs this experiment: {owner}; wait for it, end it, or pass another --experiment_name{}",
        if *certain { String::new() } else { format!(" (if it is long dead, delete {})", path.display()) }
    )]
    Held {
        /// The owner, in words.
        owner: String,
        /// The lock file.
        path: PathBuf,
        /// Whether the kernel says so; otherwise only the file's text does.
        certain: bool,
    },
    /// The file cannot be used.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The lock, held until dropped.
#[derive(Debug)]
pub(super) struct RunLock {
    file: File,
}

impl RunLock {
    /// Takes the lock, and says whose it was if its last owner died with it.
    pub(super) fn acquire(run_dir: &Path) -> Result<(Self, Option<LockOwner>), LockError> {
        let path = run_dir.join(FILE_NAME);
        let io_error = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = open_own(&path, &options).map_err(io_error)?;
        let locked = file.try_lock();
        let mut text = Vec::new();
        let mut beginning = (&mut file).take(MAX_FILE_BYTES);
        beginning.read_to_end(&mut text).map_err(io_error)?;
        // Junk counts as no owner: a crash in the middle of writing it must not lock people out.
        let previous: Option<LockOwner> = serde_json::from_slice(&text).ok();
        let held = |certain| LockError::Held {
            owner: match &previous {
                Some(owner) => owner.to_string(),
                None => "it has not written down yet which process it is".to_owned(),
            },
            path: path.clone(),
            certain,
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(true)),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                if previous.as_ref().is_some_and(LockOwner::may_be_alive) {
                    return Err(held(false));
                }
            }
            Err(TryLockError::Error(error)) => return Err(io_error(error)),
        }
        let mut lock = Self { file };
        lock.write_owner(&LockOwner::this_process())
            .map_err(io_error)?;
        Ok((lock, previous))
    }

    fn write_owner(&mut self, owner: &LockOwner) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(&serde_json::to_vec(owner)?)
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // An empty file tells the next owner that this one left in good order. It is not deleted: another controller
        // may have opened it already and would then hold a lock on a file that nobody else sees.
        let _ = self.file.set_len(0);
    }
}

impl LockOwner {
    /// This process, from now on.
    #[must_use]
    pub fn this_process() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            host: host_name(),
            since: format!("{:.0}", Timestamp::now()),
            start_ticks: ProcessId::of(pid).map_or(0, |process| process.start_ticks),
        }
    }

    /// Whether the process may still exist: for certain it does not when it was on this host and is gone.
    #[must_use]
    pub fn may_be_alive(&self) -> bool {
        let process = ProcessId {
            pid: self.pid,
            start_ticks: self.start_ticks,
        };
        self.host != host_name() || process.is_alive()
    }
}

impl fmt::Display for LockOwner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pid, host, since, ..
        } = self;
        write!(formatter, "process {pid} on {host}, since {since}")
    }
}

/// Who holds, or held and did not leave in good order, the lock of `run_dir`.
pub(super) fn owner_of(run_dir: &Path) -> Option<LockOwner> {
    serde_json::from_slice(&read_small(&run_dir.join(FILE_NAME), MAX_FILE_BYTES).ok()?).ok()
}

pub(super) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::{FILE_NAME, LockError, LockOwner, RunLock, host_name};

    #[test]
    fn the_lock_is_held_once_and_left_in_good_order() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, stale) = RunLock::acquire(folder.path()).unwrap();
        assert_eq!(stale, None);
        let error = RunLock::acquire(folder.path()).unwrap_err();
        assert!(matches!(error, LockError::Held { certain: true, .. }));
        let owner = format!("process {} on {}, since 2", std::process::id(), host_name());
        assert!(error.to_string().contains(&owner), "{error}");
        drop(lock);
        let (_lock, stale) = RunLock::acquire(folder.path()).unwrap();
        assert_eq!(stale, None, "an owner that left is not stale");
    }

    #[test]
    fn a_dead_owner_is_named_and_junk_locks_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let dead = LockOwner {
            pid: 1,
            start_ticks: u64::MAX,
            ..LockOwner::this_process()
        };
        assert!(!dead.may_be_alive());
        assert!(LockOwner::this_process().may_be_alive());
        assert!(
            LockOwner {
                host: "elsewhere".into(),
                ..dead.clone()
            }
            .may_be_alive()
        );
        std::fs::write(&path, serde_json::to_vec(&dead).unwrap()).unwrap();
        assert_eq!(RunLock::acquire(folder.path()).unwrap().1, Some(dead));
        for junk in [&b"{\"pid\":"[..], b"\xff\xfe"] {
            std::fs::write(&path, junk).unwrap();
            assert_eq!(RunLock::acquire(folder.path()).unwrap().1, None);
        }
        // Whoever locks writes its name into the file: into this one, and no other.
        let mine = folder.path().join("mine");
        std::fs::rename(&path, &mine).unwrap();
        std::fs::write(&mine, "mine").unwrap();
        std::os::unix::fs::symlink(&mine, &path).unwrap();
        let error = RunLock::acquire(folder.path()).unwrap_err();
        assert!(error.to_string().contains("a link"), "{error}");
        assert_eq!(std::fs::read(&mine).unwrap(), b"mine");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_with_its_path() {
        let error = RunLock::acquire("/nowhere".as_ref()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/.lock"), "{error}");
    }
}
