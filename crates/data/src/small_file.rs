//! Reading a file whole that is not expected to be large.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// What a tokenizer may have: ten times the largest that is published.
pub(crate) const TOKENIZER_BYTES: u64 = 512 << 20;

/// What any other JSON file of a model may have. The index of a model with a million tensors has less.
pub(crate) const JSON_BYTES: u64 = 128 << 20;

/// The bytes of the file at `path`. A pipe, socket or device, which could keep its reader waiting for ever, is not opened,
/// and of a file that is larger than `limit` (a sparse one costs nobody any disk) no more is read.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let too_large = || {
        let limit = limit >> 20;
        io::Error::other(format!(
            "it has more than the {limit} MiB that such a file may have"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let said = |path: &Path| read(path, JSON_BYTES).unwrap_err().to_string();
        assert_eq!(read(&path, 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "123").unwrap();
        assert_eq!(read(&path, 3).unwrap(), *b"123");
        assert!(read(&path, 2).is_err());
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(said(&path).contains("128 MiB"));
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        assert!(said(&path).contains("not a regular file"));
        // A device without an end, and a folder.
        for path in ["/dev/zero", "/"] {
            assert!(said(Path::new(path)).contains("not a regular file"));
        }
    }
}
