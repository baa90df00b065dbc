//! A folder of the local file system, or of one that is mounted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tandem_files::{PartialFile, sync_parent};

use super::{Listed, PutMode, ReadAt, Store, StoreError, StoreErrorKind, Upload};

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
            // Opening a pipe that somebody has put there would wait for ever.
            let metadata = fs::metadata(&path)?;
            if !metadata.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
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
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_link = match entry.file_type() {
                    Ok(kind) => kind.is_symlink(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                let size = match fs::metadata(entry.path()) {
                    Ok(metadata) => (!metadata.is_dir()).then_some(metadata.len()),
                    // A link to what is not there, or to what may not be seen.
                    Err(_) if is_link => Some(0),
                    // Deleted since the folder was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                listed.push(Listed {
                    name,
                    size,
                    is_link,
                });
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

    fn delete_folder(&self, folder: &str, chosen: &dyn Fn(&str) -> bool) -> Result<(), StoreError> {
        let path = self.path(folder);
        let delete = || {
            if fs::symlink_metadata(&path)?.is_symlink() {
                return Err(io::Error::other("it is a link to a folder elsewhere"));
            }
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let is_chosen = entry.file_name().to_str().is_some_and(chosen);
                if is_chosen && entry.file_type()?.is_file() {
                    unless_absent(fs::remove_file(entry.path()))?;
                }
            }
            match fs::remove_dir(&path) {
                // What somebody else has put there keeps the folder.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                result => result,
            }
        };
        unless_absent(delete()).map_err(|error| failed("delete", &path, error))
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
