//! Reading files that anybody may have put there, and writing files that appear whole.

mod whole;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

pub use whole::{PARTIAL_SUFFIX, PartialFile, sync_folder, sync_parent, write_whole};

/// The bytes of the file at `path`, which is not expected to be large.
///
/// A pipe, socket or device, which could keep its reader waiting for ever, is not opened, and of a file that is larger than
/// `limit` bytes (a sparse one costs nobody any disk) no more is read.
///
/// # Errors
/// What is no regular file or larger than `limit`; what the system says.
///
/// ```
/// let folder = std::env::temp_dir();
/// let error = tandem_files::read_small(&folder, 1 << 20).unwrap_err();
/// assert_eq!(error.to_string(), "it is not a regular file");
/// ```
pub fn read_small(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let too_large = || {
        let limit = match limit {
            0..=0xf_ffff => format!("{limit} bytes"),
            _ => format!("{} MiB", limit >> 20),
        };
        io::Error::other(format!(
            "it is too large: it has more than the {limit} that such a file may have"
        ))
    };
    if metadata.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // It may have grown since.
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// The same as text.
///
/// # Errors
/// As [`read_small`], and what is not UTF-8.
pub fn read_small_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read_small(path, limit)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Opens a file that the program keeps at `path` and writes to, as `options` say. What is there already must be a file of its
/// own: through a link another one would be changed or emptied, and a pipe could keep its writer waiting for ever.
///
/// # Errors
/// A link; what is no regular file; what the system says.
pub fn open_own(path: &Path, options: &OpenOptions) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => Err(io::Error::other("it is a link to another file")),
        Ok(found) if !found.is_file() => Err(io::Error::other("it is not a regular file")),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => options.open(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_of_ones_own_is_opened_to_write() {
        let folder = tempfile::tempdir().unwrap();
        let [mine, link, pipe] = ["mine", "link", "pipe"].map(|name| folder.path().join(name));
        let mut options = File::options();
        options.create(true).append(true);
        let open = |path: &Path| open_own(path, &options).map_err(|error| error.to_string());
        std::os::unix::fs::symlink(&mine, &link).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        assert!(
            open(&link).unwrap_err().contains("a link"),
            "it leads nowhere"
        );
        assert!(!mine.exists());
        open(&mine).unwrap();
        open(&mine).unwrap();
        assert!(open(&link).unwrap_err().contains("a link"));
        for path in [&pipe, folder.path()] {
            assert!(open(path).unwrap_err().contains("not a regular file"));
        }
        assert!(open(&mine.join("below")).is_err());
    }

    #[test]
    fn only_small_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let said = |path: &Path| read_small(path, 128 << 20).unwrap_err().to_string();
        let missing = read_small(&path, 9).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        fs::write(&path, "{}").unwrap();
        assert_eq!(read_small(&path, 64 << 20).unwrap(), *b"{}");
        fs::write(&path, "123").unwrap();
        assert_eq!(read_small(&path, 3).unwrap(), *b"123");
        assert_eq!(read_small_text(&path, 3).unwrap(), "123");
        let error = read_small(&path, 2).unwrap_err().to_string();
        assert!(error.contains("2 bytes"), "{error}");
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(said(&path).contains("128 MiB"));
        assert!(said(&path).contains("too large"));
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        assert!(said(&path).contains("not a regular file"));
        // A device without an end, and a folder.
        for path in ["/dev/zero", "/"] {
            assert!(said(Path::new(path)).contains("not a regular file"));
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"\xff").unwrap();
        let error = read_small_text(&path, 9).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
