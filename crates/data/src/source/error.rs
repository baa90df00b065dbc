//! What can be wrong with a dataset, said with its file and line.

use std::path::PathBuf;

use thiserror::Error;

use super::MAX_DOCUMENT_BYTES;
use super::kind::ENDINGS;
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
    #[error(
        "{} is neither .txt, .jsonl nor .parquet, nor another kind that is read: {ENDINGS}",
        path.display()
    )]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Columns that do not make what was asked for.
    #[error(
        "{} has no {} for dataset_format {kind}; it has {}",
        path.display(),
        columns.join(" or "),
        if available.is_empty() { "no columns".into() } else { available.join(", ") }
    )]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        kind: &'static str,
        /// What it is read from.
        columns: &'static [&'static str],
        /// The columns of the file.
        available: Vec<String>,
    },
    /// A pipe, for example.
    #[error("{} is {found}: a dataset's files must be regular files", path.display())]
    NotAFile {
        /// What should be a file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A pattern, or a part of a list, that stands for nothing.
    #[error("dataset_name {name}: {}", no_match(part))]
    NoMatch {
        /// The whole list.
        name: String,
        /// The path or pattern.
        part: String,
    },
    /// A pattern that is none.
    #[error("dataset_name {name}: {part} is no pattern: {reason}")]
    Pattern {
        /// The whole list.
        name: String,
        /// The pattern.
        part: String,
        /// What is wrong.
        reason: String,
    },
    /// Files that were named one by one belong to no split.
    #[error(
        "dataset_split is `{split}`, but {place} is taken whole: leave dataset_split out, or pass a folder whose files \
         are named after splits"
    )]
    SplitOfFile {
        /// The file or files.
        place: String,
        /// The split.
        split: String,
    },
    /// Lines of text have no columns.
    #[error(
        "text_column is `{column}`, but {} has no columns: each of its lines is a document; leave text_column out",
        path.display()
    )]
    ColumnOfText {
        /// A file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// More than should be held in memory, of which many threads hold several at a time.
    #[error(
        "{}, line {line}: a line or record of more than {} MiB: split it into several documents",
        path.display(), MAX_DOCUMENT_BYTES >> 20
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
    },
    /// A record that does not fit its header.
    #[error("{}, line {line}: not a valid record: {reason}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A file has no configurations.
    #[error("dataset_config is `{config}`, but {place} is no folder: leave dataset_config out")]
    ConfigOfFile {
        /// The file or files.
        place: String,
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
    /// Something that is not a JSON object.
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
        "{}{} has no column `{column}`: it has {}; choose one with --text_column",
        path.display(), at_line(*.line), list(available)
    )]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The line, from 1, of a file of JSON.
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
        /// The line, from 1, of a file of JSON.
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

fn no_match(part: &str) -> String {
    match part.contains(['*', '?', '[']) {
        true => format!("no file matches {part}"),
        false => format!("there is no file {part}"),
    }
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
    // A broken file may have thousands, and long ones.
    const MAX_COLUMNS: usize = 20;
    const MAX_CHARS: usize = 60;
    let shown = columns.iter().take(MAX_COLUMNS);
    let shown = shown.map(|name| name.chars().take(MAX_CHARS).collect());
    let mut shown: Vec<String> = shown.collect();
    if columns.len() > MAX_COLUMNS {
        shown.push(format!("and {} more", columns.len() - MAX_COLUMNS));
    }
    shown.join(", ")
}
