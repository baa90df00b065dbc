//! Lines of a UTF-8 file, with their numbers.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::error::SourceError;

/// Large reads, because a dataset is read from front to back.
const BUFFER_BYTES: usize = 1 << 20;

/// Reads a file line by line.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// Lines read so far, and so the number of the last one, from 1.
    pub(super) number: u64,
    /// Bytes read so far.
    pub(super) bytes: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(|source| SourceError::Io {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            path: path.into(),
            reader: BufReader::with_capacity(BUFFER_BYTES, file),
            number: 0,
            bytes: 0,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Iterator for Lines {
    type Item = Result<String, SourceError>;

    /// The next line without its end, which is `\n` or `\r\n`.
    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(0) => return None,
            Ok(count) => self.bytes += count as u64,
            Err(source) => {
                let path = self.path.clone();
                return Some(Err(SourceError::Io { path, source }));
            }
        }
        self.number += 1;
        if line.ends_with(b"\n") {
            line.pop();
            if line.ends_with(b"\r") {
                line.pop();
            }
        }
        Some(String::from_utf8(line).map_err(|_| SourceError::NotUtf8 {
            path: self.path.clone(),
            line: self.number,
        }))
    }
}
