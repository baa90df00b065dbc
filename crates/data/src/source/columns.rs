//! What the rows of a file are, and which of their columns make a document.

use std::path::Path;

use super::csv::CsvRows;
use super::error::SourceError;
use super::json::JsonRows;
use super::kind::Format;
use super::parquet::ParquetRows;
use super::{DatasetOptions, Source, TEXT_COLUMN};
use crate::example::ExampleKind;

/// What of a row is a document.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// The text of this column.
    Text(&'a str),
    /// Those of these columns that there are, as an object of JSON.
    Row(&'static [&'static str]),
}

impl Source {
    pub(super) fn wanted(&self) -> Wanted<'_> {
        match self.kind {
            ExampleKind::Text => Wanted::Text(&self.text_column),
            kind => Wanted::Row(kind.columns()),
        }
    }
}

/// The kind that was asked for, or that the columns of the first file tell. Whoever names a column of text wants text.
pub(super) fn kind(
    options: &DatasetOptions,
    format: Format,
    first: &Path,
) -> Result<ExampleKind, SourceError> {
    let names = match format {
        Format::Text => Vec::new(),
        Format::JsonLines => JsonRows::columns(first)?,
        Format::Csv => CsvRows::columns(first)?,
        Format::Parquet => ParquetRows::columns(first)?,
    };
    let names = names.iter().map(String::as_str);
    match options.kind {
        None if options.text_column != TEXT_COLUMN => Ok(ExampleKind::Text),
        None => Ok(ExampleKind::of_columns(names)),
        Some(ExampleKind::Text) => Ok(ExampleKind::Text),
        Some(kind) => {
            let has = |wanted: &str| names.clone().any(|name| name == wanted);
            let fits = match kind {
                ExampleKind::PromptCompletion => has("prompt") && has("completion"),
                _ => has("messages") || has("conversations"),
            };
            match fits {
                true => Ok(kind),
                false => Err(SourceError::OtherKind {
                    path: first.into(),
                    kind: kind.name(),
                    columns: kind.columns(),
                    available: names.map(str::to_owned).collect(),
                }),
            }
        }
    }
}
