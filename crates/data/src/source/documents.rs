//! The documents of all files, one after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::slice::Iter;

use super::Source;
use super::csv::CsvRows;
use super::error::SourceError;
use super::json::JsonRows;
use super::kind::Format;
use super::lines::Lines;
use super::parquet::ParquetRows;

/// An iterator over documents; after an error it ends.
pub struct Documents<'a> {
    source: &'a Source,
    files: Iter<'a, PathBuf>,
    current: Option<Reader>,
    remaining: u64,
    done_bytes: u64,
    total_bytes: u64,
}

enum Reader {
    Text(Lines),
    Json(Box<JsonRows>),
    Csv(Box<CsvRows>),
    Parquet(Box<ParquetRows>),
}

impl<'a> Documents<'a> {
    pub(super) fn open(source: &'a Source) -> Result<Self, SourceError> {
        let mut total_bytes = 0;
        for path in &source.files {
            let metadata = fs::metadata(path).map_err(|error| SourceError::Io {
                path: path.clone(),
                source: error,
            })?;
            total_bytes += metadata.len();
        }
        Ok(Self {
            source,
            files: source.files.iter(),
            current: None,
            remaining: wanted(source)?,
            done_bytes: 0,
            total_bytes: (total_bytes as f64 * source.percentage / 100.0) as u64,
        })
    }

    /// Bytes of the files that were read, and about how many will be.
    pub fn progress(&self) -> (u64, u64) {
        let current = self.current.as_ref().map_or(0, Reader::bytes);
        let done = self.done_bytes + current;
        (done.min(self.total_bytes), self.total_bytes)
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<String, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.remaining > 0 {
            let Some(reader) = &mut self.current else {
                match Reader::open(self.files.next()?, self.source) {
                    Ok(reader) => self.current = Some(reader),
                    Err(error) => return self.fail(error),
                }
                continue;
            };
            match reader.next() {
                Some(Ok(document)) => {
                    self.remaining -= 1;
                    return Some(Ok(document));
                }
                Some(Err(error)) => return self.fail(error),
                None => {
                    self.done_bytes += reader.bytes();
                    self.current = None;
                }
            }
        }
        None
    }
}

impl Documents<'_> {
    fn fail(&mut self, error: SourceError) -> Option<Result<String, SourceError>> {
        self.remaining = 0;
        Some(Err(error))
    }
}

impl Reader {
    fn open(path: &Path, source: &Source) -> Result<Self, SourceError> {
        let wanted = source.wanted();
        Ok(match source.format {
            Format::Text => Self::Text(Lines::open(path)?),
            Format::JsonLines => Self::Json(Box::new(JsonRows::open(path, wanted)?)),
            Format::Csv => Self::Csv(Box::new(CsvRows::open(path, wanted)?)),
            Format::Parquet => Self::Parquet(Box::new(ParquetRows::open(path, wanted)?)),
        })
    }

    fn next(&mut self) -> Option<Result<String, SourceError>> {
        match self {
            Self::Text(lines) => lines.next(),
            Self::Json(rows) => rows.next(),
            Self::Csv(rows) => rows.next(),
            Self::Parquet(rows) => rows.next(),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Text(lines) => lines.bytes(),
            Self::Json(rows) => rows.bytes(),
            Self::Csv(rows) => rows.bytes(),
            Self::Parquet(rows) => rows.bytes(),
        }
    }
}

/// How many documents to read. Counting them takes a pass over text files, so it is done for a share only.
fn wanted(source: &Source) -> Result<u64, SourceError> {
    if source.percentage >= 100.0 {
        return Ok(u64::MAX);
    }
    let mut documents = 0;
    for path in &source.files {
        documents += match source.format {
            Format::Text => count(Lines::open(path)?)?,
            Format::JsonLines => JsonRows::count(path)?,
            Format::Csv => CsvRows::count(path)?,
            Format::Parquet => ParquetRows::count(path)?,
        };
    }
    if documents == 0 {
        return Err(SourceError::Empty {
            place: source.place.clone(),
            files: source.files.len(),
        });
    }
    let wanted = (documents as f64 * source.percentage / 100.0).round() as u64;
    if wanted == 0 {
        return Err(SourceError::NothingLeft {
            place: source.place.clone(),
            percentage: source.percentage,
            documents,
        });
    }
    Ok(wanted)
}

fn count(lines: Lines) -> Result<u64, SourceError> {
    let mut documents = 0;
    for line in lines {
        line?;
        documents += 1;
    }
    Ok(documents)
}
