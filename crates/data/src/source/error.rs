//! What can be wrong with a dataset, said with its file and line.

use std::path::PathBuf;

use thiserror::Error;

use super::select::SelectError;
use crate::hub::HubError;

/// Why there are no documents, or no further ones.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Neither here nor on the hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Files, but not those that were asked for.
    #[error("dataset {place}: {source}")]
    Select {
        /// Folder or hub name.
        place: String,
        /// What is missing.
        source: SelectError,
    },
    /// A single file of a kind that is not read.
    #[error("{} is neither .txt, .jsonl nor .parquet", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// A file has no configurations.
    #[error("dataset_config is `{config}`, but {} is one file: leave dataset_config out", path.display())]
    ConfigOfFile {
        /// The file.
        path: PathBuf,
        /// The configuration.
        config: String,
    },
    /// Less than nothing or more than all.
    #[error("dataset_percentage is {value}: it must be above 0 and at most 100")]
    Percentage {
        /// What was asked for.
        value: f64,
    },
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Text in another encoding.
    #[error("{}, line {line}: not UTF-8 text: convert the file to UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
    },
    /// A line that is not a JSON object.
    #[error("{}, line {line}: not a JSON object: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What the parser says.
        reason: String,
    },
    /// A file that is cut off, overwritten, or no parquet file at all.
    #[error("{} is not a valid parquet file{}: {reason}", path.display(), after_row(*.row))]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Rows that were read before.
        row: u64,
        /// What the reader says.
        reason: String,
    },
    /// No text where it was expected.
    #[error(
        "{}{} has no column `{column}`: it has {}; choose one with text_column",
        path.display(), at_line(*.line), list(available)
    )]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The line, from 1, of a .jsonl file.
        line: Option<u64>,
        /// The column that was asked for.
        column: String,
        /// Those that there are.
        available: Vec<String>,
    },
    /// A column of numbers, for example.
    #[error(
        "{}{}: column `{column}` holds {found}, not text: choose another with text_column",
        path.display(), at_line(*.line)
    )]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line, from 1, of a .jsonl file.
        line: Option<u64>,
        /// The column.
        column: String,
        /// What it holds.
        found: String,
    },
    /// Files without a single document.
    #[error("dataset {place} is empty: its {files} file(s) have no documents")]
    Empty {
        /// What was asked for.
        place: String,
        /// Files there are.
        files: usize,
    },
    /// A share that rounds to nothing.
    #[error(
        "dataset_percentage {percentage} of the {documents} documents of {place} is none: use a larger percentage"
    )]
    NothingLeft {
        /// What was asked for.
        place: String,
        /// The share in percent.
        percentage: f64,
        /// Documents in all.
        documents: u64,
    },
}

fn at_line(line: Option<u64>) -> String {
    line.map(|line| format!(", line {line}"))
        .unwrap_or_default()
}

fn after_row(row: u64) -> String {
    if row == 0 {
        String::new()
    } else {
        format!(" (after row {row})")
    }
}

fn list(columns: &[String]) -> String {
    if columns.is_empty() {
        return "no columns".into();
    }
    columns.join(", ")
}
