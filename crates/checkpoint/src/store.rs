//! Where checkpoints are kept: one trait over a local folder and over object storage.
//!
//! The trait promises only what both can keep. A file appears whole or not at all, and stays once the call that made it has
//! returned. Folders are nothing but prefixes of file names: they need not be created, and an absent one is empty.

#[cfg(feature = "testing")]
mod fault;
mod local;
mod location;
// Also for its test, which object storage would otherwise leave out.
#[cfg(any(test, not(feature = "object-storage")))]
mod not_built;
#[cfg(feature = "object-storage")]
mod remote;
mod watched;

use std::error::Error as StdError;
use std::fmt;

use thiserror::Error;

#[cfg(feature = "testing")]
pub use fault::{Fault, FaultStore};
pub use local::LocalStore;
pub use location::{local_path, open_store};
#[cfg(feature = "object-storage")]
pub use remote::RemoteStore;
pub use watched::{Lost, WatchedStore, mark_folder};

/// The largest file that is read whole: the manifest of a checkpoint of 20 terabytes (70 bytes for every chunk), or ten times
/// the largest tokenizer that is published.
pub const MAX_READ_BYTES: u64 = 512 << 20;

/// A tree of files. Paths are relative, with `/` between names.
///
/// Calls block, and may come from several threads at once, but not from inside an asynchronous task.
pub trait Store: Send + Sync + fmt::Debug {
    /// The full name of `path`, for messages.
    fn locate(&self, path: &str) -> String;

    /// Begins a file of `size` bytes, which appears when [`Upload::finish`] returns. An earlier file of this name is replaced.
    ///
    /// # Errors
    /// The store refuses.
    fn create(&self, path: &str, size: u64) -> Result<Box<dyn Upload>, StoreError>;

    /// Writes a small file at once.
    ///
    /// # Errors
    /// The store refuses, or with [`PutMode::CreateNew`] the file is there already ([`StoreErrorKind::AlreadyExists`]).
    fn put(&self, path: &str, bytes: &[u8], mode: PutMode) -> Result<(), StoreError>;

    /// A small file with what tells this version of it from all others; `None` when it is absent.
    ///
    /// # Errors
    /// The store refuses, or it cannot tell versions apart ([`StoreErrorKind::Unsupported`]).
    fn read_version(&self, path: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        Err(self.without_versions("read a version of", path))
    }

    /// Writes a small file where it is still the version `expected`, or, for `None`, still absent. Returns the new version.
    ///
    /// # Errors
    /// Somebody else has written it ([`StoreErrorKind::AlreadyExists`]), and as [`Store::read_version`].
    fn put_version(
        &self,
        path: &str,
        _bytes: &[u8],
        _expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        Err(self.without_versions("write a version of", path))
    }

    /// The error of a store that cannot tell versions apart.
    fn without_versions(&self, operation: &'static str, path: &str) -> StoreError {
        StoreError {
            operation,
            location: self.locate(path),
            kind: StoreErrorKind::Unsupported,
            source: "this storage cannot tell versions of a file apart".into(),
        }
    }

    /// Opens a file for positioned reads.
    ///
    /// # Errors
    /// The file is absent ([`StoreErrorKind::NotFound`]), or the store refuses.
    fn open(&self, path: &str) -> Result<Box<dyn ReadAt>, StoreError>;

    /// What is directly in `folder`, by name; nothing when the folder is absent. The root is the empty path.
    ///
    /// # Errors
    /// The store refuses.
    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError>;

    /// Deletes a file; one that is absent is no error.
    ///
    /// # Errors
    /// The store refuses.
    fn delete(&self, path: &str) -> Result<(), StoreError>;

    /// Deletes the files directly in `folder` whose names `chosen` accepts, in no certain order, and the folder when nothing
    /// else is in it. Sub-folders and links stay. A folder that is absent is no error.
    ///
    /// # Errors
    /// The store refuses, or `folder` is a link to one. Part of the files may then be gone.
    fn delete_folder(&self, folder: &str, chosen: &dyn Fn(&str) -> bool) -> Result<(), StoreError>;

    /// The sizes that the files `names` in `folder` have, `None` for those that are absent.
    ///
    /// One listing tells most. What it lacks is asked for by name: on a network file system, the list of a folder can be
    /// older than a file that another host has finished.
    ///
    /// # Errors
    /// The store refuses.
    fn sizes(&self, folder: &str, names: &[&str]) -> Result<Vec<Option<u64>>, StoreError> {
        let listed = self.list(folder)?;
        let size = |name: &&str| match listed.iter().find(|listed| listed.name == **name) {
            Some(listed) => Ok(listed.size),
            None => match self.open(&join(folder, name)) {
                Ok(file) => Ok(Some(file.size())),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            },
        };
        names.iter().map(size).collect()
    }

    /// How many reads at a time make the most of the store: one for every core, unless every read waits for a round trip.
    fn concurrent_reads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// Reads a small file whole, which may have half a gigabyte.
    ///
    /// # Errors
    /// As [`Store::read_limited`].
    fn read(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        self.read_limited(path, MAX_READ_BYTES)
    }

    /// Reads a small file whole, which may have `limit` bytes. One that has more, which may be sparse and cost nobody
    /// anything, is not read at all.
    ///
    /// # Errors
    /// As [`Store::open`] and [`ReadAt::read_at`]; the file is too large.
    fn read_limited(&self, path: &str, limit: u64) -> Result<Vec<u8>, StoreError> {
        let file = self.open(path)?;
        if file.size() > limit {
            let (size, limit) = (file.size(), limit >> 20);
            return Err(StoreError {
                operation: "read",
                location: self.locate(path),
                kind: StoreErrorKind::TooLarge,
                source: format!("it has {size} bytes, and such a file may have {limit} MiB").into(),
            });
        }
        let mut bytes = vec![0; file.size() as usize];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// A file that is being written. Dropped before [`Upload::finish`], it never appears.
pub trait Upload: Send {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// The store refuses; the file can then not be finished.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Makes the file durable, then visible.
    ///
    /// # Errors
    /// The store refuses; the file has then not appeared.
    fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// A file that is being read.
pub trait ReadAt: Send + Sync {
    /// Bytes of the file when it was opened.
    fn size(&self) -> u64;

    /// Fills `out` from `position` on.
    ///
    /// # Errors
    /// The store refuses, or the file ends too early ([`StoreErrorKind::TooShort`]).
    fn read_at(&self, position: u64, out: &mut [u8]) -> Result<(), StoreError>;
}

/// What to do when a file of that name is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Replace it in one step: whoever reads sees the old or the new.
    Replace,
    /// Refuse.
    CreateNew,
}

/// Tells one version of a file from all others. Object stores have an entity tag, a number, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The entity tag.
    pub e_tag: Option<String>,
    /// The number.
    pub number: Option<String>,
}

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name, without the folder's. What is no Unicode in it is replaced, so that it is no name of ours.
    pub name: String,
    /// Bytes of a file; `None` for a folder. Of a link, what it leads to has.
    pub size: Option<u64>,
    /// Whether it is a link to something elsewhere, which is not ours to follow.
    pub is_link: bool,
}

impl Listed {
    /// Whether it is a file of its own.
    pub fn is_file(&self) -> bool {
        self.size.is_some() && !self.is_link
    }

    /// Whether it is a folder of its own.
    pub fn is_folder(&self) -> bool {
        self.size.is_none() && !self.is_link
    }
}

/// An operation that a store did not carry out.
#[derive(Debug, Error)]
#[error("cannot {operation} {location}: {}", told(source.as_ref()))]
pub struct StoreError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub location: String,
    /// Sort of failure.
    pub kind: StoreErrorKind,
    /// The store's own words.
    pub source: Box<dyn StdError + Send + Sync>,
}

/// Sorts of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// The file is absent.
    NotFound,
    /// The file is there already.
    AlreadyExists,
    /// The disk or the quota is full.
    NoSpace,
    /// Not allowed.
    Denied,
    /// The file ends before what was to be read.
    TooShort,
    /// The file is larger than one of its kind may be.
    TooLarge,
    /// The store cannot do this.
    Unsupported,
    /// Anything else.
    Other,
}

impl StoreError {
    /// True when the file is absent.
    pub fn is_not_found(&self) -> bool {
        self.kind == StoreErrorKind::NotFound
    }

    /// True when the file was there already.
    pub fn is_already_exists(&self) -> bool {
        self.kind == StoreErrorKind::AlreadyExists
    }

    /// The error of a location that cannot be opened.
    fn refused(location: &str, problem: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            operation: "open the storage at",
            location: location.to_owned(),
            kind: StoreErrorKind::Other,
            source: problem.into(),
        }
    }
}

/// An error with its causes: object storage hides the reason behind several layers.
fn told(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// `folder/name`, where the folder may be the root.
pub(crate) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}
