//! A dataset as a stream of documents, whatever files it lies in.

mod documents;
mod error;
mod jsonl;
mod lines;
mod parquet;
mod select;

use std::fs;
use std::path::{Path, PathBuf};

pub use documents::Documents;
pub use error::SourceError;
pub use select::{Format, SelectError};

use crate::hub::Hub;
use crate::progress::Progress;

/// The hub's name of the dataset that `wikitext` stands for.
const WIKITEXT: (&str, &str) = ("Salesforce/wikitext", "wikitext-2-raw-v1");

/// Which text to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetOptions {
    /// A local file, a local folder, or a name on the hub. `wikitext` is Salesforce/wikitext with the configuration
    /// wikitext-2-raw-v1.
    pub name: String,
    /// The folder, inside the dataset, to which its files are limited.
    pub config: Option<String>,
    /// The split, `train` for example. A single local file is taken whole.
    pub split: String,
    /// The column of a .jsonl or .parquet file that holds the text.
    pub text_column: String,
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
            text_column: "text".into(),
            percentage: 100.0,
        }
    }
}

/// The files of a dataset, all on this machine and all of one kind.
///
/// What counts as a document: a line of a .txt file (the `text` loader of Hugging Face `datasets`), the text column of a
/// line of a .jsonl file, the text column of a row of a .parquet file. A null is an empty document.
#[derive(Debug, Clone)]
pub struct Source {
    place: String,
    files: Vec<PathBuf>,
    format: Format,
    text_column: String,
    percentage: f64,
}

impl Source {
    /// Finds the files that `options` ask for, and downloads those that are on the hub and not in its cache.
    ///
    /// In a folder, and so on the hub, a file belongs to the split that it or a folder above it is named after; where no
    /// file is named after a split, all belong to `train`. Without `config`, the files may lie in one folder only.
    ///
    /// # Errors
    /// Nothing there, or not what was asked for; a download that failed.
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
        let (format, files) = if path.is_file() {
            single_file(path, options)?
        } else if path.is_dir() {
            let names = walk(path)?;
            let config = options.config.as_deref();
            let (format, chosen) = select_in(&names, &options.name, config, &options.split)?;
            (format, chosen.iter().map(|name| path.join(name)).collect())
        } else {
            from_hub(options, hub, progress)?
        };
        Ok(Self {
            place: options.name.clone(),
            files,
            format,
            text_column: options.text_column.clone(),
            percentage: options.percentage,
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

    /// The column with the text.
    pub fn text_column(&self) -> &str {
        &self.text_column
    }

    /// How much of the documents is used, in percent.
    pub fn percentage(&self) -> f64 {
        self.percentage
    }

    /// Reads the documents one after the other; what is in memory is one line, or one batch of rows.
    ///
    /// # Errors
    /// A dataset without documents; a file that cannot be read or counted.
    pub fn documents(&self) -> Result<Documents<'_>, SourceError> {
        Documents::open(self)
    }
}

fn single_file(
    path: &Path,
    options: &DatasetOptions,
) -> Result<(Format, Vec<PathBuf>), SourceError> {
    if let Some(config) = &options.config {
        return Err(SourceError::ConfigOfFile {
            path: path.into(),
            config: config.clone(),
        });
    }
    let format =
        Format::of(&options.name).ok_or_else(|| SourceError::Kind { path: path.into() })?;
    Ok((format, vec![path.into()]))
}

fn from_hub(
    options: &DatasetOptions,
    hub: &Hub,
    progress: &mut dyn Progress,
) -> Result<(Format, Vec<PathBuf>), SourceError> {
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
    let (format, chosen) = select_in(snapshot.files(), &place, config, &options.split)?;
    let files = chosen
        .iter()
        .map(|name| snapshot.bring(name, progress))
        .collect::<Result<_, _>>()?;
    snapshot.commit()?;
    Ok((format, files))
}

fn select_in(
    names: &[String],
    place: &str,
    config: Option<&str>,
    split: &str,
) -> Result<(Format, Vec<String>), SourceError> {
    select::select(names, config, split).map_err(|source| SourceError::Select {
        place: place.into(),
        source,
    })
}

/// The files below `root`, relative to it, with `/` between components. Hidden ones are left out.
fn walk(root: &Path) -> Result<Vec<String>, SourceError> {
    let mut names = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(folder) = pending.pop() {
        let path = root.join(&folder);
        let read = |source| SourceError::Io {
            path: path.clone(),
            source,
        };
        for entry in fs::read_dir(&path).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            // Through the path and not the entry, because a file of the hub's cache is a symbolic link.
            let is_dir = entry.path().is_dir();
            let name = format!("{folder}{name}");
            if is_dir {
                pending.push(name + "/");
            } else {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}
