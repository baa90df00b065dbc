//! Reading a file of the run's folder whole.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// A run that is started again ten thousand times writes less.
const MAX_BYTES: u64 = 64 << 20;

/// The bytes of the file at `path`. Anybody may have put something else there: a pipe, which would keep its reader waiting
/// for ever, is not opened, and what is far too large is not read.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("it is too large to be a file of a run"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "{}").unwrap();
        assert_eq!(read(&path).unwrap(), *b"{}");
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("too large"));
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        assert!(read(&path).unwrap_err().to_string().contains("regular"));
    }
}
