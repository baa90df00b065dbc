//! The text column of a parquet file.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_cast::cast;
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::error::SourceError;
use crate::panic_message::panic_message;

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 1024;

/// Reads one column, a batch of rows at a time.
pub(super) struct ParquetRows {
    path: PathBuf,
    batches: ParquetRecordBatchReader,
    rows: IntoIter<String>,
    row: u64,
    total_rows: u64,
    file_bytes: u64,
    has_failed: bool,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, column: &str) -> Result<Self, SourceError> {
        let (builder, file_bytes) = open(path)?;
        let schema = builder.schema();
        let Ok(index) = schema.index_of(column) else {
            return Err(SourceError::NoColumn {
                path: path.into(),
                line: None,
                column: column.into(),
                available: schema.fields().iter().map(|f| f.name().clone()).collect(),
            });
        };
        let data_type = schema.field(index).data_type();
        if !is_text(data_type) {
            return Err(SourceError::NotText {
                path: path.into(),
                line: None,
                column: column.into(),
                found: data_type.to_string(),
            });
        }
        let only = ProjectionMask::roots(builder.parquet_schema(), [index]);
        let total_rows = row_count(&builder);
        let builder = builder.with_projection(only).with_batch_size(BATCH_ROWS);
        let batches = guarded(|| builder.build())
            .and_then(|batches| batches.map_err(|error| error.to_string()))
            .map_err(|reason| corrupt(path, 0, reason))?;
        Ok(Self {
            path: path.into(),
            batches,
            rows: Vec::new().into_iter(),
            row: 0,
            total_rows,
            file_bytes,
            has_failed: false,
        })
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

    fn texts(&self, batch: &RecordBatch) -> Result<Vec<String>, SourceError> {
        let column = cast(batch.column(0), &DataType::LargeUtf8)
            .map_err(|error| corrupt(&self.path, self.row, error.to_string()))?;
        let texts = column.as_string::<i64>();
        Ok((0..texts.len())
            .map(|row| {
                if texts.is_null(row) {
                    String::new()
                } else {
                    texts.value(row).to_owned()
                }
            })
            .collect())
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
            let texts = match guarded(|| self.batches.next()) {
                Ok(None) => return None,
                Ok(Some(Ok(batch))) => self.texts(&batch),
                Ok(Some(Err(error))) => Err(corrupt(&self.path, self.row, error.to_string())),
                Err(reason) => Err(corrupt(&self.path, self.row, reason)),
            };
            match texts {
                Ok(texts) => self.rows = texts.into_iter(),
                Err(error) => {
                    self.has_failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

fn open(path: &Path) -> Result<(ParquetRecordBatchReaderBuilder<File>, u64), SourceError> {
    let io = |source| SourceError::Io {
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file))
        .and_then(|builder| builder.map_err(|error| error.to_string()))
        .map_err(|reason| corrupt(path, 0, reason))?;
    Ok((builder, file_bytes))
}

fn row_count(builder: &ParquetRecordBatchReaderBuilder<File>) -> u64 {
    let rows = builder.metadata().file_metadata().num_rows();
    u64::try_from(rows).unwrap_or(0)
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// Runs a part of the parquet reader, which panics at some corrupt metadata; that becomes its error message. What it was
/// working on is not used after that.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_message(panic.as_ref()))
}

fn corrupt(path: &Path, row: u64, reason: String) -> SourceError {
    SourceError::Parquet {
        path: path.into(),
        row,
        reason,
    }
}
