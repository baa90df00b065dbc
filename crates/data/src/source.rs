//! A dataset as a stream of documents, whatever files it lies in.

mod columns;
mod csv;
mod documents;
mod error;
mod input;
mod json;
mod kind;
mod left_out;
mod lines;
mod parquet;
mod places;
mod select;
mod wanted;

use std::path::{Path, PathBuf};

pub use documents::Documents;
pub use error::SourceError;
pub use kind::Format;
pub use places::file_list;
pub use select::SelectError;

use crate::example::ExampleKind;
use crate::hub::Hub;
use crate::progress::Progress;
pub(crate) use input::BYTE_ORDER_MARK;
pub(crate) use kind::Kind;
use select::Selected;

/// The longest line or record. A file that is not what its name says may be one line; this is what it can cost.
const MAX_DOCUMENT_BYTES: u64 = 256 << 20;

/// The column that is read when nobody names one.
const TEXT_COLUMN: &str = "text";

/// The hub's name of the dataset that `wikitext` stands for.
const WIKITEXT: (&str, &str) = ("Salesforce/wikitext", "wikitext-2-raw-v1");

/// Which text to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetOptions {
    /// A local file, a local folder, a list of local files and patterns (`a.jsonl,more/*.jsonl`), or a name on the hub.
    /// `wikitext` is Salesforce/wikitext with the configuration wikitext-2-raw-v1.
    pub name: String,
    /// The folder, inside the dataset, to which its files are limited; `all` stands for all folders.
    pub config: Option<String>,
    /// The split, `train` for example. Files that are named one by one are taken whole.
    pub split: String,
    /// The column that holds the text, in files that have columns.
    pub text_column: String,
    /// What the rows are; `None` looks at the names of the columns.
    pub kind: Option<ExampleKind>,
    /// How much of the documents, from the first, in percent: above 0, at most 100. The number of documents is rounded
    /// to the nearest.
    pub percentage: f64,
}

impl DatasetOptions {
    /// All documents of the split `train` in the column `text`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            config: None,
            split: "train".into(),
            text_column: TEXT_COLUMN.into(),
            kind: None,
            percentage: 100.0,
        }
    }
}

/// The files of a dataset, all on this machine and all of one kind.
///
/// What counts as a document of text: a line of a .txt file (the `text` loader of Hugging Face `datasets`), the text column of a
/// JSON object (one a line, one after the other, or in an array), of a row of a .csv file or of a .parquet file. A null is an
/// empty document. A conversation, or a prompt with its completion, is a row as an object of JSON.
#[derive(Debug, Clone)]
pub struct Source {
    place: String,
    files: Vec<PathBuf>,
    format: Format,
    text_column: String,
    kind: ExampleKind,
    percentage: f64,
    left_out: String,
}

impl Source {
    /// Finds the files that `options` ask for, and downloads those that are on the hub and not in its cache.
    ///
    /// In a folder, and so on the hub, a file belongs to the split that it or a folder above it is named after; where no
    /// file is named after a split, all belong to `train`. Without `config`, the files may lie in one folder only, or in
    /// folders such as `year=2024`.
    ///
    /// # Errors
    /// Nothing there, or not what was asked for; a download that failed; what is not a regular file.
    pub fn resolve(
        options: &DatasetOptions,
        hub: &Hub,
        progress: &mut dyn Progress,
    ) -> Result<Self, SourceError> {
        if !(options.percentage > 0.0 && options.percentage <= 100.0) {
            return Err(SourceError::Percentage {
                value: options.percentage,
            });
        }
        let path = Path::new(&options.name);
        let (selected, files) = if path.is_dir() {
            folder(path, options)?
        } else if path.exists() {
            one_file(path, options)?
        } else if let Some(parts) = file_list(&options.name) {
            several_files(&parts, options)?
        } else {
            from_hub(options, hub, progress)?
        };
        if selected.format == Format::Text && options.text_column != TEXT_COLUMN {
            return Err(SourceError::ColumnOfText {
                path: files[0].clone(),
                column: options.text_column.clone(),
            });
        }
        let kind = columns::kind(options, selected.format, &files[0])?;
        Ok(Self {
            place: options.name.clone(),
            files,
            format: selected.format,
            text_column: options.text_column.clone(),
            kind,
            percentage: options.percentage,
            left_out: selected.left_out.to_string(),
        })
    }

    /// What was asked for: a path or a hub name.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The files, in the order in which they are read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Their kind.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What its rows are.
    pub fn kind(&self) -> ExampleKind {
        self.kind
    }

    /// The column with the text.
    pub fn text_column(&self) -> &str {
        &self.text_column
    }

    /// How much of the documents is used, in percent.
    pub fn percentage(&self) -> f64 {
        self.percentage
    }

    /// What of the folder is not read and why, in one line; `None` where all is read.
    pub fn left_out(&self) -> Option<&str> {
        (!self.left_out.is_empty()).then_some(&self.left_out)
    }

    /// Reads the documents one after the other; what is in memory is one line, or one batch of rows.
    ///
    /// # Errors
    /// A dataset without documents; a file that cannot be read or counted.
    pub fn documents(&self) -> Result<Documents<'_>, SourceError> {
        Documents::open(self)
    }
}

fn folder(path: &Path, options: &DatasetOptions) -> Result<(Selected, Vec<PathBuf>), SourceError> {
    let walk = places::walk(path)?;
    let config = options.config.as_deref();
    let mut selected = select_in(&walk.names, &options.name, config, &options.split)?;
    for link in &walk.links {
        selected.left_out.add("links to what is read anyway", link);
    }
    let files = selected.files.iter().map(|name| path.join(name)).collect();
    Ok((selected, files))
}

fn one_file(
    path: &Path,
    options: &DatasetOptions,
) -> Result<(Selected, Vec<PathBuf>), SourceError> {
    input::refuse_special(path)?;
    if Format::of(&options.name).is_none() {
        return Err(SourceError::Kind { path: path.into() });
    }
    whole(vec![path.into()], options)
}

fn several_files(
    parts: &[&str],
    options: &DatasetOptions,
) -> Result<(Selected, Vec<PathBuf>), SourceError> {
    // What somebody names must be read; what a pattern matches may have other things among it.
    if let Some(part) = parts
        .iter()
        .find(|part| Path::new(part).is_file() && Format::of(part).is_none())
    {
        return Err(SourceError::Kind { path: part.into() });
    }
    whole(places::listed(&options.name, parts)?, options)
}

/// Files that were named, whatever split they may belong to.
fn whole(
    files: Vec<PathBuf>,
    options: &DatasetOptions,
) -> Result<(Selected, Vec<PathBuf>), SourceError> {
    let place = options.name.clone();
    if let Some(config) = options.config.clone() {
        return Err(SourceError::ConfigOfFile { place, config });
    }
    let names: Vec<String> = files
        .iter()
        .map(|file| file.to_string_lossy().into_owned())
        .collect();
    let split = &options.split;
    if split != "train" && !names.iter().all(|name| select::is_of_split(name, split)) {
        let split = split.clone();
        return Err(SourceError::SplitOfFile { place, split });
    }
    let selected = select::all(&names).map_err(|source| SourceError::Select { place, source })?;
    let files = selected.files.iter().map(PathBuf::from).collect();
    Ok((selected, files))
}

fn from_hub(
    options: &DatasetOptions,
    hub: &Hub,
    progress: &mut dyn Progress,
) -> Result<(Selected, Vec<PathBuf>), SourceError> {
    let (name, default_config) = match options.name.as_str() {
        "wikitext" => (WIKITEXT.0, Some(WIKITEXT.1)),
        name => (name, None),
    };
    let snapshot = hub.dataset(name)?;
    let config = options.config.as_deref().or(default_config);
    let place = if snapshot.is_cache_only() {
        format!("{name} (as far as it is cached)")
    } else {
        name.to_owned()
    };
    let selected = select_in(snapshot.files(), &place, config, &options.split)?;
    let files = selected
        .files
        .iter()
        .map(|name| snapshot.bring(name, progress))
        .collect::<Result<_, _>>()?;
    snapshot.commit()?;
    Ok((selected, files))
}

fn select_in(
    names: &[String],
    place: &str,
    config: Option<&str>,
    split: &str,
) -> Result<Selected, SourceError> {
    select::select(names, config, split).map_err(|source| SourceError::Select {
        place: place.into(),
        source,
    })
}
