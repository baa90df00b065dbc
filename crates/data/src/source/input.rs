//! The bytes of a file of text: unpacked, and without the mark that some programs begin it with.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;

use super::error::SourceError;
use super::kind::{Compression, Kind};

/// Large reads, because a dataset is read from front to back.
const BUFFER_BYTES: usize = 1 << 20;

/// The largest window that zstd knows (`--long=31`), which published dumps are packed with.
const ZSTD_WINDOW_LOG: u32 = 31;

/// What Windows programs begin a UTF-8 file with.
pub(crate) const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Unpacked bytes, and how many of the file's own were read for them.
pub(super) struct Input {
    pub(super) reader: Box<dyn BufRead + Send>,
    bytes: Arc<AtomicU64>,
}

impl Input {
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let io = |source| SourceError::Io {
            path: path.into(),
            source,
        };
        refuse_special(path)?;
        let bytes = Arc::new(AtomicU64::new(0));
        let file = Counted {
            file: File::open(path).map_err(io)?,
            bytes: Arc::clone(&bytes),
        };
        let compression = Kind::of(&path.to_string_lossy()).and_then(|kind| kind.compression);
        let unpacked: Box<dyn Read + Send> = match compression {
            None => Box::new(file),
            // Of several members, as parallel packers write them.
            Some(Compression::Gzip) => Box::new(MultiGzDecoder::new(BufReader::new(file))),
            Some(Compression::Zstd) => {
                let mut decoder = zstd::stream::read::Decoder::new(file).map_err(io)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(io)?;
                Box::new(decoder)
            }
        };
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, unpacked);
        let mut first = Vec::new();
        let mark = BYTE_ORDER_MARK.len() as u64;
        (&mut reader)
            .take(mark)
            .read_to_end(&mut first)
            .map_err(io)?;
        if first == BYTE_ORDER_MARK {
            first.clear();
        }
        Ok(Self {
            reader: Box::new(Cursor::new(first).chain(reader)),
            bytes,
        })
    }

    /// Bytes of the file that were read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Puts bytes back that were read.
    pub(super) fn unread(self, first: Vec<u8>) -> Self {
        Self {
            reader: Box::new(Cursor::new(first).chain(self.reader)),
            ..self
        }
    }
}

/// Refuses a pipe, socket or device, which could keep its reader waiting for ever, and has no content to hash.
pub(super) fn refuse_special(path: &Path) -> Result<(), SourceError> {
    let metadata = fs::metadata(path).map_err(|source| SourceError::Io {
        path: path.into(),
        source,
    })?;
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(());
    }
    Err(SourceError::NotAFile {
        path: path.into(),
        found: if kind.is_dir() {
            "a folder"
        } else if kind.is_fifo() {
            "a pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "a device"
        },
    })
}

struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
