//! The text column, or some columns, of a file of comma or tab separated values with a header.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use csv::{ByteRecord, Reader, ReaderBuilder};

use super::MAX_DOCUMENT_BYTES;
use super::error::SourceError;
use super::input::Input;
use super::kind::Kind;
use super::wanted::Wanted;

/// Reads a record at a time. A field in quotes may hold line ends; a missing last field is an empty document,
/// as for `datasets`.
pub(super) struct CsvRows {
    path: PathBuf,
    reader: Reader<Watched>,
    watch: Arc<Watch>,
    columns: usize,
    taken: Taken,
    record: ByteRecord,
    has_failed: bool,
}

/// What is taken of a record.
enum Taken {
    Text(usize),
    /// Names and places of what becomes an object.
    Row(Vec<(&'static str, usize)>),
}

/// What is known of the bytes that the parser has taken.
#[derive(Default)]
struct Watch {
    bytes: AtomicU64,
    /// Unpacked bytes since the last record.
    since_record: AtomicU64,
    /// Separators outside of quotes since then.
    fields: AtomicU64,
    /// Whether an odd number of quotes was read.
    is_odd: AtomicBool,
}

/// Fields of a record. The parser keeps where each ends, which takes eight times as much as an empty field.
const MAX_FIELDS: u64 = 1_000_000;

/// Bytes on their way to the parser, which would take a file whose first quote is never closed into memory whole.
struct Watched {
    input: Input,
    separator: u8,
    watch: Arc<Watch>,
}

impl Read for Watched {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let buffer = self.input.reader.fill_buf()?;
        let count = buffer.len().min(out.len());
        out[..count].copy_from_slice(&buffer[..count]);
        self.input.reader.consume(count);
        let watch = &self.watch;
        let (mut is_odd, mut separators) = (watch.is_odd.load(Ordering::Relaxed), 0);
        for byte in &out[..count] {
            is_odd ^= *byte == b'"';
            separators += u64::from(*byte == self.separator && !is_odd);
        }
        watch.is_odd.store(is_odd, Ordering::Relaxed);
        let fields = watch.fields.fetch_add(separators, Ordering::Relaxed);
        watch.bytes.store(self.input.bytes(), Ordering::Relaxed);
        let since = watch
            .since_record
            .fetch_add(count as u64, Ordering::Relaxed);
        if since > MAX_DOCUMENT_BYTES || fields > MAX_FIELDS {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(count)
    }
}

impl CsvRows {
    pub(super) fn open(path: &Path, wanted: Wanted<'_>) -> Result<Self, SourceError> {
        let mut rows = Self::with_header(path)?;
        let names = names(&rows.header()?);
        let place = |wanted: &str| names.iter().position(|name| name == wanted);
        rows.columns = names.len();
        rows.taken = match wanted {
            Wanted::Text(column) => {
                Taken::Text(place(column).ok_or_else(|| SourceError::NoColumn {
                    path: path.into(),
                    line: None,
                    column: column.into(),
                    available: names.clone(),
                })?)
            }
            Wanted::Row(columns) => {
                let places = columns.iter().map(|name| Some((*name, place(name)?)));
                Taken::Row(places.flatten().collect())
            }
        };
        Ok(rows)
    }

    /// The names in the header of a file.
    pub(super) fn columns(path: &Path) -> Result<Vec<String>, SourceError> {
        Ok(names(&Self::with_header(path)?.header()?))
    }

    /// Records of a file, without its header.
    pub(super) fn count(path: &Path) -> Result<u64, SourceError> {
        let mut rows = Self::with_header(path)?;
        rows.columns = rows.header()?.len();
        let mut count = 0;
        while rows.read()? {
            count += 1;
        }
        Ok(count)
    }

    /// Bytes of the file read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.watch.bytes.load(Ordering::Relaxed)
    }

    fn with_header(path: &Path) -> Result<Self, SourceError> {
        let has_tabs = Kind::of(&path.to_string_lossy()).is_some_and(|kind| kind.has_tabs);
        let watch = Arc::new(Watch::default());
        let separator = if has_tabs { b'\t' } else { b',' };
        let input = Watched {
            input: Input::open(path)?,
            separator,
            watch: Arc::clone(&watch),
        };
        let reader = ReaderBuilder::new()
            .delimiter(separator)
            .flexible(true)
            .from_reader(input);
        Ok(Self {
            path: path.into(),
            reader,
            watch,
            columns: 0,
            taken: Taken::Text(0),
            record: ByteRecord::new(),
            has_failed: false,
        })
    }

    fn header(&mut self) -> Result<ByteRecord, SourceError> {
        match self.reader.byte_headers() {
            Ok(header) => Ok(header.clone()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Whether there was another record.
    fn read(&mut self) -> Result<bool, SourceError> {
        self.watch.since_record.store(0, Ordering::Relaxed);
        self.watch.fields.store(0, Ordering::Relaxed);
        // The last record so far, of which only the end of the file tells whether its quotes are closed.
        let (has_line_ends, line) = (self.record.iter().any(|f| f.contains(&b'\n')), self.line());
        let is_record = self.reader.read_byte_record(&mut self.record);
        let is_record = is_record.map_err(|error| self.failed(error))?;
        let wrong = |line, reason| SourceError::Csv {
            path: self.path.clone(),
            line,
            reason,
        };
        // A quote within a field without quotes is a letter; one that makes the rest of the file a field is a mistake.
        if !is_record && has_line_ends && self.watch.is_odd.load(Ordering::Relaxed) {
            return Err(wrong(line, "a quote that is never closed".into()));
        }
        if !is_record {
            return Ok(false);
        }
        if self.record.len() > self.columns {
            return Err(wrong(
                self.line(),
                format!(
                    "{} fields, but the header has {}",
                    self.record.len(),
                    self.columns
                ),
            ));
        }
        Ok(true)
    }

    fn document(&self) -> Result<String, SourceError> {
        match &self.taken {
            Taken::Text(place) => self.text(*place).map(str::to_owned),
            Taken::Row(places) => {
                let mut row = serde_json::Map::new();
                for (name, place) in places {
                    row.insert((*name).into(), self.text(*place)?.into());
                }
                Ok(serde_json::Value::Object(row).to_string())
            }
        }
    }

    fn text(&self, place: usize) -> Result<&str, SourceError> {
        let field = self.record.get(place).unwrap_or_default();
        std::str::from_utf8(field).map_err(|_| SourceError::NotUtf8 {
            path: self.path.clone(),
            line: self.line(),
        })
    }

    fn line(&self) -> u64 {
        self.record.position().map_or(1, |position| position.line())
    }

    fn failed(&self, error: csv::Error) -> SourceError {
        let line = self.reader.position().line();
        let path = self.path.clone();
        match error.into_kind() {
            csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                match self.watch.fields.load(Ordering::Relaxed) > MAX_FIELDS {
                    true => SourceError::Csv {
                        path,
                        line,
                        reason: format!("it has more than {MAX_FIELDS} fields"),
                    },
                    false => SourceError::TooLong { path, line },
                }
            }
            csv::ErrorKind::Io(source) => SourceError::Io { path, source },
            other => SourceError::Csv {
                path,
                line,
                reason: format!("{other:?}"),
            },
        }
    }
}

fn names(header: &ByteRecord) -> Vec<String> {
    let names = header.iter();
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

impl Iterator for CsvRows {
    type Item = Result<String, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let text = match self.read() {
            Ok(false) => return None,
            Ok(true) => self.document(),
            Err(error) => Err(error),
        };
        self.has_failed = text.is_err();
        Some(text)
    }
}
