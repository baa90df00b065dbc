//! A folder of the local file system, or of one that is mounted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Listed, PutMode, ReadAt, Store, StoreError, StoreErrorKind, Upload};
use crate::durable::{PartialFile, sync_parent};

/// Files below one folder.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// The store of what is below `root`, which is created when something is written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Creates the folder of `path`, durably: a file is lost with its folder.
    fn create_folder_of(&self, path: &Path) -> io::Result<()> {
        let Some(folder) = path.parent() else {
            return Ok(());
        };
        if folder.is_dir() {
            return Ok(());
        }
        let missing: Vec<&Path> = folder.ancestors().take_while(|f| !f.is_dir()).collect();
        fs::create_dir_all(folder)?;
        missing.into_iter().try_for_each(sync_parent)
    }

    fn begin(&self, path: &Path) -> io::Result<PartialFile> {
        self.create_folder_of(path)?;
        PartialFile::create(path)
    }
}

impl Store for LocalStore {
    fn locate(&self, path: &str) -> String {
        self.path(path).display().to_string()
    }

    fn create(&self, path: &str, _size: u64) -> Result<Box<dyn Upload>, StoreError> {
        let path = self.path(path);
        match self.begin(&path) {
            Ok(file) => Ok(Box::new(LocalUpload { file, path })),
            Err(error) => Err(failed("create", &path, error)),
        }
    }

    fn put(&self, path: &str, bytes: &[u8], mode: PutMode) -> Result<(), StoreError> {
        let path = self.path(path);
        let write = || {
            let mut file = self.begin(&path)?;
            file.write_all(bytes)?;
            match mode {
                PutMode::Replace => file.finish(),
                PutMode::CreateNew => file.finish_new(),
            }
        };
        write().map_err(|error| failed("write", &path, error))
    }

    fn open(&self, path: &str) -> Result<Box<dyn ReadAt>, StoreError> {
        let path = self.path(path);
        let open = || {
            let file = File::open(&path)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        match open() {
            Ok((file, size)) => Ok(Box::new(LocalFile { file, size, path })),
            Err(error) => Err(failed("open", &path, error)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let path = self.path(folder);
        let list = || {
            let mut listed = Vec::new();
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                // Names that are not UTF-8 are none of ours.
                let Ok(name) = entry.file_name().into_string() else {
                    continue;
                };
                let metadata = match fs::metadata(entry.path()) {
                    Ok(metadata) => metadata,
                    // Deleted since the folder was read, or a dangling link.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                let size = (!metadata.is_dir()).then_some(metadata.len());
                listed.push(Listed { name, size });
            }
            listed.sort();
            Ok(listed)
        };
        match list() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result.map_err(|error| failed("list", &path, error)),
        }
    }

    fn delete(&self, path: &str) -> Result<(), StoreError> {
        let path = self.path(path);
        let delete = || {
            fs::remove_file(&path)?;
            // What is deleted next may only go when this is gone for certain.
            sync_parent(&path)
        };
        unless_absent(delete()).map_err(|error| failed("delete", &path, error))
    }

    fn delete_folder(&self, folder: &str) -> Result<(), StoreError> {
        let path = self.path(folder);
        unless_absent(fs::remove_dir_all(&path)).map_err(|error| failed("delete", &path, error))
    }
}

struct LocalUpload {
    file: PartialFile,
    path: PathBuf,
}

impl Upload for LocalUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all(bytes)
            .map_err(|error| failed("write", &self.path, error))
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Self { file, path } = *self;
        file.finish().map_err(|error| failed("write", &path, error))
    }
}

struct LocalFile {
    file: File,
    size: u64,
    path: PathBuf,
}

impl ReadAt for LocalFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, position: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.file
            .read_exact_at(out, position)
            .map_err(|error| failed("read", &self.path, error))
    }
}

fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn failed(operation: &'static str, path: &Path, error: io::Error) -> StoreError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => StoreErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => StoreErrorKind::AlreadyExists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreErrorKind::NoSpace,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreErrorKind::Denied
        }
        io::ErrorKind::UnexpectedEof => StoreErrorKind::TooShort,
        _ => StoreErrorKind::Other,
    };
    StoreError {
        operation,
        location: path.display().to_string(),
        kind,
        source: Box::new(error),
    }
}
