//! Files that appear whole or not at all, and stay after a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What a file is called until it is whole.
pub(crate) const PARTIAL_SUFFIX: &str = ".partial";

/// A file that takes its name when it is whole. Dropped before that, it leaves nothing.
#[derive(Debug)]
pub(crate) struct PartialFile {
    file: File,
    partial: PathBuf,
    target: PathBuf,
    finished: bool,
}

impl PartialFile {
    /// Begins the file that will be called `target`.
    pub fn create(target: &Path) -> io::Result<Self> {
        let mut partial = target.as_os_str().to_owned();
        partial.push(PARTIAL_SUFFIX);
        let partial = PathBuf::from(partial);
        // Made anew: what lies there may be a link to another file, which must not be written to.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            file: File::create_new(&partial)?,
            partial,
            target: target.to_owned(),
            finished: false,
        })
    }

    /// Makes the bytes durable, then gives the file its name.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.target)?;
        self.finished = true;
        sync_parent(&self.target)
    }

    /// As [`PartialFile::finish`], but a file that has the name already keeps it, and the call fails.
    pub fn finish_new(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        // A second name for the file is refused where the name is taken, which a rename is not.
        match fs::hard_link(&self.partial, &self.target) {
            Ok(()) => {
                fs::remove_file(&self.partial)?;
                self.finished = true;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // Some mounted file systems have no second names.
            Err(_) if self.target.exists() => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => return self.finish(),
        }
        sync_parent(&self.target)
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Makes the names in the folder of `path` durable: a rename is only certain once its folder is on disk.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// Makes the names in `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
