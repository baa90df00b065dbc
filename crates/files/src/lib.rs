//! Reading files that anybody may have put there, and writing files that appear whole.

mod whole;

use std::fs::{self, File};
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

#[cfg(test)]
mod tests {
    use super::*;

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
