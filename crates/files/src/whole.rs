//! Files that appear whole or not at all, and stay after a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What a file is called until it is whole.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// A file that takes its name when it is whole. Dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct PartialFile {
    file: File,
    partial: PathBuf,
    target: PathBuf,
    finished: bool,
}

impl PartialFile {
    /// Begins the file that will be called `target`.
    ///
    /// Until it is whole it has one fixed name, so that a process which is killed leaves nothing that the next one does not
    /// replace; there must be no second writer.
    ///
    /// # Errors
    /// What the system says.
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
    ///
    /// # Errors
    /// What the system says; no file has then taken the name.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        self.rename()?;
        sync_parent(&self.target)
    }

    fn rename(&mut self) -> io::Result<()> {
        fs::rename(&self.partial, &self.target)?;
        self.finished = true;
        Ok(())
    }

    /// As [`PartialFile::finish`], but a file that has the name already keeps it, and the call fails.
    ///
    /// # Errors
    /// The name is taken; what the system says.
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

/// Writes a file so that nobody ever sees half of it. A power cut may still lose it.
///
/// # Errors
/// What the system says; the earlier file is then still there.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("trajectory.json");
/// tandem_files::write_whole(&path, b"{}")?;
/// assert_eq!(tandem_files::read_small_text(&path, 100)?, "{}");
/// # Ok::<_, std::io::Error>(())
/// ```
pub fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = PartialFile::create(path)?;
    file.write_all(contents)?;
    file.rename()
}

/// Makes the names in the folder of `path` durable: a rename is only certain once its folder is on disk.
///
/// # Errors
/// What the system says.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// Makes the names in `folder` durable.
///
/// # Errors
/// What the system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.json");
        let names = || fs::read_dir(folder.path()).unwrap().count();
        write_whole(&path, b"one").unwrap();
        let mut half = PartialFile::create(&path).unwrap();
        half.write_all(b"tw").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        drop(half);
        assert_eq!((fs::read(&path).unwrap(), names()), (b"one".to_vec(), 1));
        let new = PartialFile::create(&path).unwrap();
        let error = new.finish_new().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let mut third = PartialFile::create(&path).unwrap();
        third.write_all(b"three").unwrap();
        third.finish().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names()), (b"three".to_vec(), 1));
    }

    #[test]
    fn what_a_killed_process_has_left_is_replaced_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let partial = folder.path().join("file.partial");
        fs::write(&partial, "left").unwrap();
        write_whole(&path, b"x").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let mine = folder.path().join("mine");
        fs::write(&mine, "mine").unwrap();
        std::os::unix::fs::symlink(&mine, &partial).unwrap();
        write_whole(&path, b"y").unwrap();
        assert_eq!(fs::read(&mine).unwrap(), b"mine");
        assert_eq!(fs::read(&path).unwrap(), b"y");
    }
}
