//! What the rows of a file are: the names of its columns tell.

use std::path::Path;

use super::csv::CsvRows;
use super::error::SourceError;
use super::json::JsonRows;
use super::kind::Format;
use super::parquet::ParquetRows;
use super::wanted::Wanted;
use super::{DatasetOptions, Source, TEXT_COLUMN};
use crate::example::ExampleKind;

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
