//! A store with trouble in it, for tests of everything that must survive trouble.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Listed, PutMode, ReadAt, Store, StoreError, StoreErrorKind, Upload, join};

/// What goes wrong. Operations are counted from 1; every write to an [`Upload`] is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Operation `at` fails and does nothing; those after it work.
    Error {
        /// Number of the operation.
        at: u64,
    },
    /// If operation `at` writes, half of its bytes arrive before it fails.
    ShortWrite {
        /// Number of the operation.
        at: u64,
    },
    /// Writing fails once this many bytes have been written.
    NoSpace {
        /// Bytes that fit.
        bytes: u64,
    },
    /// As if the process was killed in operation `at`: it is left half done, none after it does anything, and nothing is
    /// tidied up.
    Kill {
        /// Number of the operation.
        at: u64,
    },
}

/// A [`Store`] that passes everything on to another, until the [`Fault`] strikes.
#[derive(Debug, Clone)]
pub struct FaultStore {
    inner: Arc<dyn Store>,
    trouble: Arc<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    fault: Mutex<Fault>,
    operations: AtomicU64,
    written: AtomicU64,
    struck: AtomicBool,
}

/// How an operation is to go.
#[derive(PartialEq)]
enum Verdict {
    Works,
    Fails,
    HalfThenFails,
}

impl FaultStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>, fault: Fault) -> Self {
        Self {
            inner,
            trouble: Arc::new(Trouble {
                fault: Mutex::new(fault),
                operations: AtomicU64::new(0),
                written: AtomicU64::new(0),
                struck: AtomicBool::new(false),
            }),
        }
    }

    /// Begins to count anew, with another fault.
    pub fn set(&self, fault: Fault) {
        *self.trouble.fault.lock() = fault;
        self.trouble.operations.store(0, Ordering::SeqCst);
        self.trouble.written.store(0, Ordering::SeqCst);
        self.trouble.struck.store(false, Ordering::SeqCst);
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.trouble.operations.load(Ordering::SeqCst)
    }

    /// Whether the fault has struck.
    pub fn has_struck(&self) -> bool {
        self.trouble.struck.load(Ordering::SeqCst)
    }
}

impl Trouble {
    fn fault(&self) -> Fault {
        *self.fault.lock()
    }

    fn is_dead(&self) -> bool {
        matches!(self.fault(), Fault::Kill { .. }) && self.struck.load(Ordering::SeqCst)
    }

    /// Counts an operation that writes `bytes`.
    fn next(&self, bytes: u64) -> Verdict {
        let number = self.operations.fetch_add(1, Ordering::SeqCst) + 1;
        let verdict = match self.fault() {
            Fault::None => Verdict::Works,
            Fault::Kill { at } if number > at => Verdict::Fails,
            Fault::Kill { at } | Fault::ShortWrite { at } if number == at => Verdict::HalfThenFails,
            Fault::Error { at } if number == at => Verdict::Fails,
            Fault::NoSpace { bytes: room } if bytes > 0 => {
                let written = self.written.fetch_add(bytes, Ordering::SeqCst);
                if written + bytes <= room {
                    Verdict::Works
                } else {
                    Verdict::Fails
                }
            }
            _ => Verdict::Works,
        };
        if verdict != Verdict::Works {
            self.struck.store(true, Ordering::SeqCst);
        }
        verdict
    }

    fn error(&self, operation: &'static str, location: String) -> StoreError {
        let (kind, text) = match self.fault() {
            Fault::NoSpace { .. } => (StoreErrorKind::NoSpace, "no space left (injected)"),
            Fault::Kill { .. } => (StoreErrorKind::Other, "killed (injected)"),
            _ => (StoreErrorKind::Other, "input/output error (injected)"),
        };
        StoreError {
            operation,
            location,
            kind,
            source: text.into(),
        }
    }
}

impl Store for FaultStore {
    fn locate(&self, path: &str) -> String {
        self.inner.locate(path)
    }

    fn create(&self, path: &str, size: u64) -> Result<Box<dyn Upload>, StoreError> {
        match self.trouble.next(0) {
            Verdict::Works => Ok(Box::new(FaultUpload {
                inner: Some(self.inner.create(path, size)?),
                location: self.locate(path),
                trouble: self.trouble.clone(),
            })),
            _ => Err(self.trouble.error("create", self.locate(path))),
        }
    }

    fn put(&self, path: &str, bytes: &[u8], mode: PutMode) -> Result<(), StoreError> {
        match self.trouble.next(bytes.len() as u64) {
            Verdict::Works => return self.inner.put(path, bytes, mode),
            Verdict::Fails => {}
            Verdict::HalfThenFails => {
                let mut upload = self.inner.create(path, bytes.len() as u64)?;
                upload.write(&bytes[..bytes.len() / 2])?;
                if self.trouble.is_dead() {
                    // The dead do not tidy up.
                    std::mem::forget(upload);
                }
            }
        }
        Err(self.trouble.error("write", self.locate(path)))
    }

    fn open(&self, path: &str) -> Result<Box<dyn ReadAt>, StoreError> {
        match self.trouble.next(0) {
            Verdict::Works => Ok(Box::new(FaultFile {
                inner: self.inner.open(path)?,
                location: self.locate(path),
                trouble: self.trouble.clone(),
            })),
            _ => Err(self.trouble.error("open", self.locate(path))),
        }
    }

    fn concurrent_reads(&self) -> usize {
        // One after the other, so that a fault strikes the same operation every time.
        1
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        match self.trouble.next(0) {
            Verdict::Works => self.inner.list(folder),
            _ => Err(self.trouble.error("list", self.locate(folder))),
        }
    }

    fn delete(&self, path: &str) -> Result<(), StoreError> {
        match self.trouble.next(0) {
            Verdict::Works => self.inner.delete(path),
            _ => Err(self.trouble.error("delete", self.locate(path))),
        }
    }

    fn delete_folder(&self, folder: &str, chosen: &dyn Fn(&str) -> bool) -> Result<(), StoreError> {
        match self.trouble.next(0) {
            Verdict::Works => return self.inner.delete_folder(folder, chosen),
            Verdict::Fails => {}
            Verdict::HalfThenFails => {
                let listed = self.inner.list(folder)?;
                let files = listed.iter().filter(|l| l.is_file() && chosen(&l.name));
                for file in files.step_by(2) {
                    self.inner.delete(&join(folder, &file.name))?;
                }
            }
        }
        Err(self.trouble.error("delete", self.locate(folder)))
    }
}

struct FaultUpload {
    inner: Option<Box<dyn Upload>>,
    location: String,
    trouble: Arc<Trouble>,
}

impl Upload for FaultUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let verdict = self.trouble.next(bytes.len() as u64);
        if let Some(inner) = &mut self.inner {
            match verdict {
                Verdict::Works => return inner.write(bytes),
                Verdict::Fails => {}
                Verdict::HalfThenFails => inner.write(&bytes[..bytes.len() / 2])?,
            }
        }
        Err(self.trouble.error("write", self.location.clone()))
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        match (self.trouble.next(0), self.inner.take()) {
            (Verdict::Works, Some(inner)) => inner.finish(),
            (_, inner) => {
                self.inner = inner;
                Err(self.trouble.error("write", self.location.clone()))
            }
        }
    }
}

impl Drop for FaultUpload {
    fn drop(&mut self) {
        if self.trouble.is_dead() {
            std::mem::forget(self.inner.take());
        }
    }
}

struct FaultFile {
    inner: Box<dyn ReadAt>,
    location: String,
    trouble: Arc<Trouble>,
}

impl ReadAt for FaultFile {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, position: u64, out: &mut [u8]) -> Result<(), StoreError> {
        match self.trouble.next(0) {
            Verdict::Works => self.inner.read_at(position, out),
            _ => Err(self.trouble.error("read", self.location.clone())),
        }
    }
}
