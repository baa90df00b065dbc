//! Lines of a UTF-8 file, with their numbers.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use super::MAX_DOCUMENT_BYTES;
use super::error::SourceError;
use super::input::Input;

/// Reads a file line by line.
pub(super) struct Lines {
    path: PathBuf,
    input: Input,
    /// Lines read so far, and so the number of the last one, from 1.
    pub(super) number: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        Ok(Self::of(path, Input::open(path)?))
    }

    /// The lines of what is left of an input.
    pub(super) fn of(path: &Path, input: Input) -> Self {
        Self {
            path: path.into(),
            input,
            number: 0,
        }
    }

    /// Bytes of the file read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.input.bytes()
    }
}

impl Iterator for Lines {
    type Item = Result<String, SourceError>;

    /// The next line without its end, which is `\n` or `\r\n`.
    fn next(&mut self) -> Option<Self::Item> {
        let path = || self.path.clone();
        let mut line = Vec::new();
        let mut limited = (&mut self.input.reader).take(MAX_DOCUMENT_BYTES + 1);
        match limited.read_until(b'\n', &mut line) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(source) => {
                let path = path();
                return Some(Err(SourceError::Io { path, source }));
            }
        }
        self.number += 1;
        let line_number = self.number;
        if line.ends_with(b"\n") {
            line.pop();
            if line.ends_with(b"\r") {
                line.pop();
            }
        } else if line.len() as u64 > MAX_DOCUMENT_BYTES {
            return Some(Err(SourceError::TooLong {
                path: path(),
                line: line_number,
            }));
        }
        Some(String::from_utf8(line).map_err(|_| SourceError::NotUtf8 {
            path: path(),
            line: line_number,
        }))
    }
}
