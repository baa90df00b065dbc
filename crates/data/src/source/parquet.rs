//! The text column of a parquet file, through the `parquet` crate's column readers. Arrow, which would make arrays of the
//! column, is not needed for that, and takes as long to compile as half of our own code.

mod column;
mod rows;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use self::column::{Column, NoText, find};
use self::rows::Objects;
use super::error::SourceError;
use super::wanted::Wanted;
use crate::panics::guarded;

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 1024;

/// Reads a batch of rows at a time.
pub(super) struct ParquetRows {
    path: PathBuf,
    decoder: Batches,
    rows: IntoIter<String>,
    row: u64,
    total_rows: u64,
    file_bytes: u64,
    has_failed: bool,
}

/// What gives the next rows, at most so many as are decoded at once; none at the end of the file.
enum Batches {
    // In a box because it is large, beside the readers of other kinds of files.
    Text(Box<Decoder>),
    Objects(Objects),
}

impl Batches {
    fn next_batch(&mut self) -> Result<Vec<String>, ParquetError> {
        match self {
            Self::Text(decoder) => decoder.next_batch(),
            Self::Objects(objects) => objects.next_batch(BATCH_ROWS),
        }
    }
}

impl ParquetRows {
    pub(super) fn open(path: &Path, wanted: Wanted<'_>) -> Result<Self, SourceError> {
        let (file, file_bytes) = open(path)?;
        let total_rows = row_count(&file);
        let decoder = match wanted {
            Wanted::Text(column) => Self::text(path, file, column)?,
            Wanted::Row(columns) => {
                let objects = guarded(|| Objects::open(file, columns));
                Batches::Objects(objects.map_err(|reason| corrupt(path, 0, reason))?)
            }
        };
        Ok(Self {
            path: path.into(),
            total_rows,
            decoder,
            rows: Vec::new().into_iter(),
            row: 0,
            file_bytes,
            has_failed: false,
        })
    }

    fn text(
        path: &Path,
        file: SerializedFileReader<File>,
        column: &str,
    ) -> Result<Batches, SourceError> {
        let schema = file.metadata().file_metadata().schema_descr();
        let column = find(schema, column).map_err(|problem| match problem {
            NoText::NoColumn { available } => SourceError::NoColumn {
                path: path.into(),
                line: None,
                column: column.into(),
                available,
            },
            NoText::OtherType { found } => SourceError::NotText {
                path: path.into(),
                line: None,
                column: column.into(),
                found,
            },
        })?;
        Ok(Batches::Text(Box::new(Decoder::new(file, column))))
    }

    /// The names of a file's columns.
    pub(super) fn columns(path: &Path) -> Result<Vec<String>, SourceError> {
        let (file, _) = open(path)?;
        let schema = file.metadata().file_metadata().schema_descr();
        let fields = schema.root_schema().get_fields();
        Ok(fields.iter().map(|field| field.name().to_owned()).collect())
    }

    /// Rows of a file, from its footer.
    pub(super) fn count(path: &Path) -> Result<u64, SourceError> {
        Ok(row_count(&open(path)?.0))
    }

    /// The part of the file's bytes that the rows so far are likely to take.
    pub(super) fn bytes(&self) -> u64 {
        let share = self.row as f64 / self.total_rows.max(1) as f64;
        (self.file_bytes as f64 * share) as u64
    }
}

impl Iterator for ParquetRows {
    type Item = Result<String, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(text) = self.rows.next() {
                self.row += 1;
                return Some(Ok(text));
            }
            if self.has_failed {
                return None;
            }
            match guarded(|| self.decoder.next_batch()) {
                Ok(texts) if texts.is_empty() => return None,
                Ok(texts) => self.rows = texts.into_iter(),
                Err(reason) => {
                    self.has_failed = true;
                    return Some(Err(corrupt(&self.path, self.row, reason)));
                }
            }
        }
    }
}

/// Goes through the row groups of a file.
struct Decoder {
    file: SerializedFileReader<File>,
    column: Column,
    next_group: usize,
    /// The current row group's part of the column, and how many of its rows are still to come.
    group: Option<(ColumnReaderImpl<ByteArrayType>, usize)>,
    // What a batch is decoded into, kept for the next one.
    values: Vec<ByteArray>,
    definition_levels: Vec<i16>,
}

impl Decoder {
    fn new(file: SerializedFileReader<File>, column: Column) -> Self {
        Self {
            file,
            column,
            next_group: 0,
            group: None,
            values: Vec::new(),
            definition_levels: Vec::new(),
        }
    }

    /// The next rows, at most [`BATCH_ROWS`]; none at the end of the file.
    fn next_batch(&mut self) -> Result<Vec<String>, ParquetError> {
        loop {
            match &mut self.group {
                Some((_, 0)) => self.group = None,
                Some((reader, rows_left)) => {
                    self.values.clear();
                    self.definition_levels.clear();
                    let (rows, _, _) = reader.read_records(
                        BATCH_ROWS.min(*rows_left),
                        Some(&mut self.definition_levels),
                        None,
                        &mut self.values,
                    )?;
                    if rows == 0 {
                        let problem = format!("row group {} lacks rows", self.next_group - 1);
                        return Err(ParquetError::General(problem));
                    }
                    *rows_left -= rows;
                    return self.texts();
                }
                None if self.next_group == self.file.num_row_groups() => return Ok(Vec::new()),
                None => {
                    let group = self.file.get_row_group(self.next_group)?;
                    let rows = usize::try_from(group.metadata().num_rows())?;
                    let reader = group.get_column_reader(self.column.leaf)?;
                    self.group = Some((get_typed_column_reader(reader), rows));
                    self.next_group += 1;
                }
            }
        }
    }

    /// The rows in the buffers. A null is an empty text.
    fn texts(&self) -> Result<Vec<String>, ParquetError> {
        let text = |value: &ByteArray| value.as_utf8().map(str::to_owned);
        if !self.column.is_nullable {
            return self.values.iter().map(text).collect();
        }
        let mut values = self.values.iter();
        let row = |level: &i16| match *level {
            0 => Ok(String::new()),
            _ => match values.next() {
                Some(value) => text(value),
                None => Err(ParquetError::EOF("fewer values than rows".into())),
            },
        };
        self.definition_levels.iter().map(row).collect()
    }
}

fn open(path: &Path) -> Result<(SerializedFileReader<File>, u64), SourceError> {
    let io = |source| SourceError::Io {
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let reader =
        guarded(|| SerializedFileReader::new(file)).map_err(|reason| corrupt(path, 0, reason))?;
    Ok((reader, file_bytes))
}

fn row_count(file: &SerializedFileReader<File>) -> u64 {
    let rows = file.metadata().file_metadata().num_rows();
    u64::try_from(rows).unwrap_or(0)
}

fn corrupt(path: &Path, row: u64, reason: String) -> SourceError {
    SourceError::Parquet {
        path: path.into(),
        row,
        reason,
    }
}
