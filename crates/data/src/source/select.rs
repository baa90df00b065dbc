//! Which files of a folder or hub repository make up a split: pure functions of their names.
//!
//! The rules are those of Hugging Face `datasets` for repositories without a loading script, as far as names go. YAML
//! headers that map configurations to other files are not read.

use std::collections::BTreeSet;

use thiserror::Error;

/// Kinds of files that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A document a line.
    Text,
    /// A JSON object a line.
    JsonLines,
    /// A document a row.
    Parquet,
}

/// Why no set of files is the one that was asked for.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SelectError {
    /// Nothing that is read.
    #[error(
        "no .txt, .jsonl or .parquet file ({}){}",
        seen(found),
        script_hint(found)
    )]
    NoData {
        /// Files of other kinds.
        found: Vec<String>,
    },
    /// A configuration that is not there.
    #[error(
        "no configuration `{config}`; {}",
        choices("configurations", available)
    )]
    NoConfig {
        /// What was asked for.
        config: String,
        /// Folders with data.
        available: Vec<String>,
    },
    /// Several configurations and no word which.
    #[error("several configurations: choose one of {} with dataset_config", available.join(", "))]
    ManyConfigs {
        /// Folders with data.
        available: Vec<String>,
    },
    /// A split that is not there.
    #[error("no split `{split}`; {}", choices("splits", available))]
    NoSplit {
        /// What was asked for.
        split: String,
        /// Splits that files are named after.
        available: Vec<String>,
    },
    /// Files that cannot be one stream.
    #[error("files of different kinds ({}): keep one kind, or pass one file", files.join(", "))]
    MixedKinds {
        /// One of each kind.
        files: Vec<String>,
    },
    /// A file of a numbered series is missing.
    #[error(
        "{present} of the {expected} files of the series {series} are there: download it again"
    )]
    MissingShard {
        /// The name without numbers.
        series: String,
        /// Files there are.
        present: usize,
        /// Files that the names announce.
        expected: usize,
    },
}

impl Format {
    /// The kind that a file's name tells.
    pub fn of(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "txt" => Some(Self::Text),
            "jsonl" => Some(Self::JsonLines),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// The files among `names` (relative paths) of this configuration and split, sorted, and their kind.
pub(super) fn select(
    names: &[String],
    config: Option<&str>,
    split: &str,
) -> Result<(Format, Vec<String>), SelectError> {
    let data: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| Format::of(name).is_some())
        .collect();
    if data.is_empty() {
        return Err(SelectError::NoData {
            found: names.to_vec(),
        });
    }
    let data = of_config(&data, config)?;
    let mut data = of_split(&data, split)?;
    data.sort_unstable();
    let format = one_kind(&data)?;
    check_series(&data)?;
    Ok((format, data.into_iter().map(str::to_owned).collect()))
}

fn of_config<'a>(data: &[&'a str], config: Option<&str>) -> Result<Vec<&'a str>, SelectError> {
    let folders: BTreeSet<String> = data.iter().map(|name| config_folder(name)).collect();
    let available = || {
        let named = folders.iter().filter(|folder| !folder.is_empty());
        named.cloned().collect()
    };
    let Some(config) = config else {
        if folders.len() > 1 {
            return Err(SelectError::ManyConfigs {
                available: available(),
            });
        }
        return Ok(data.to_vec());
    };
    let chosen: Vec<&str> = data
        .iter()
        .copied()
        .filter(|name| config_folder(name) == config || folders_of(name).any(|f| f == config))
        .collect();
    if chosen.is_empty() {
        return Err(SelectError::NoConfig {
            config: config.into(),
            available: available(),
        });
    }
    Ok(chosen)
}

/// The folder of a file without what says nothing about its configuration.
fn config_folder(name: &str) -> String {
    let folders = folders_of(name).filter(|folder| *folder != "data" && keyword(folder).is_none());
    folders.collect::<Vec<_>>().join("/")
}

fn of_split<'a>(data: &[&'a str], split: &str) -> Result<Vec<&'a str>, SelectError> {
    let canonical = keyword(split).filter(|_| is_alias(split));
    let wanted = canonical.unwrap_or(split);
    let chosen: Vec<&str> = data
        .iter()
        .copied()
        .filter(|name| stem(name) == split || split_of(name).as_deref() == Some(wanted))
        .collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let available: BTreeSet<String> = data.iter().filter_map(|name| split_of(name)).collect();
    if available.is_empty() && wanted == "train" {
        return Ok(data.to_vec());
    }
    Err(SelectError::NoSplit {
        split: split.into(),
        available: available.into_iter().collect(),
    })
}

/// The split that a file is named after, or else a folder above it.
fn split_of(name: &str) -> Option<String> {
    let stem = stem(name);
    if let Some(split) = keyword(stem) {
        // `train_sft-00000-of-00004` is a split of its own, `my_train_file` is not.
        let is_series = series(name).is_some() && !is_alias(stem);
        return Some(if is_series { stem } else { split }.into());
    }
    let mut folders: Vec<&str> = folders_of(name).collect();
    folders.reverse();
    let split = folders.into_iter().find_map(keyword);
    split.map(str::to_owned)
}

/// The split that one of the words of `name` means.
fn keyword(name: &str) -> Option<&'static str> {
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .find_map(|word| {
            let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
            match word.to_ascii_lowercase().as_str() {
                "train" | "training" => Some("train"),
                "validation" | "valid" | "val" | "dev" => Some("validation"),
                "test" | "testing" | "eval" | "evaluation" => Some("test"),
                _ => None,
            }
        })
}

/// Whether `name` is nothing but a word for a split.
fn is_alias(name: &str) -> bool {
    keyword(name).is_some() && name.chars().all(|c| c.is_ascii_alphabetic())
}

fn folders_of(name: &str) -> impl Iterator<Item = &str> {
    let folders = name.rsplit_once('/').map_or("", |(folders, _)| folders);
    folders.split('/').filter(|folder| !folder.is_empty())
}

/// A file's name without folders, extension and place in a series.
fn stem(name: &str) -> &str {
    let file = name.rsplit('/').next().unwrap_or(name);
    match series(name) {
        Some((stem, _)) => stem,
        None => file.rsplit_once('.').map_or(file, |(stem, _)| stem),
    }
}

/// The stem and length of the series of `STEM-00000-of-00004.EXT`.
fn series(name: &str) -> Option<(&str, usize)> {
    let file = name.rsplit('/').next()?;
    let (rest, total) = file.rsplit_once('.')?.0.rsplit_once("-of-")?;
    // Newer files have a hash after the number.
    let total = total.split('-').next()?.parse().ok()?;
    let (stem, number) = rest.rsplit_once('-')?;
    number.parse::<usize>().ok().map(|_| (stem, total))
}

fn one_kind(data: &[&str]) -> Result<Format, SelectError> {
    let mut kinds: Vec<(Format, &str)> = Vec::new();
    for name in data {
        if let Some(format) = Format::of(name)
            && kinds.iter().all(|(known, _)| *known != format)
        {
            kinds.push((format, name));
        }
    }
    match kinds.as_slice() {
        [(format, _)] => Ok(*format),
        kinds => Err(SelectError::MixedKinds {
            files: kinds.iter().map(|(_, name)| (*name).into()).collect(),
        }),
    }
}

/// A cache may hold a part of a series only, when a download was interrupted.
fn check_series(data: &[&str]) -> Result<(), SelectError> {
    for name in data {
        let Some((stem, expected)) = series(name) else {
            continue;
        };
        let folder = |name: &str| {
            name.rsplit_once('/')
                .map_or(String::new(), |(f, _)| f.into())
        };
        let present = data.iter().filter(|other| {
            series(other) == Some((stem, expected)) && folder(other) == folder(name)
        });
        let present = present.count();
        if present != expected {
            return Err(SelectError::MissingShard {
                series: stem.into(),
                present,
                expected,
            });
        }
    }
    Ok(())
}

fn seen(found: &[String]) -> String {
    match found {
        [] => "it has no files".into(),
        [only] => format!("it has {only}"),
        [first, ..] => format!("it has {} files, {first} for example", found.len()),
    }
}

fn script_hint(found: &[String]) -> &'static str {
    if found.iter().any(|name| name.ends_with(".py")) {
        ": it has a loading script, which is not run; convert it to .parquet"
    } else if found.is_empty() {
        ""
    } else {
        ": convert it to one of these"
    }
}

fn choices(what: &str, available: &[String]) -> String {
    if available.is_empty() {
        return format!("its files name no {what}");
    }
    format!("its {what} are {}", available.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[track_caller]
    fn chosen(files: &[&str], config: Option<&str>, split: &str) -> Vec<String> {
        select(&names(files), config, split).unwrap().1
    }

    #[track_caller]
    fn refused(files: &[&str], config: Option<&str>, split: &str) -> String {
        let message = select(&names(files), config, split)
            .unwrap_err()
            .to_string();
        println!("{message}");
        message
    }

    #[test]
    fn splits_are_told_by_files_and_folders() {
        let files = ["README.md", "train.txt", "valid.txt", "my-test2.txt"];
        assert_eq!(chosen(&files, None, "train"), ["train.txt"]);
        assert_eq!(chosen(&files, None, "validation"), ["valid.txt"]);
        assert_eq!(chosen(&files, None, "valid"), ["valid.txt"]);
        assert_eq!(chosen(&files, None, "test"), ["my-test2.txt"]);
        let files = [
            "data/dev/a.jsonl",
            "data/train/b.jsonl",
            "data/train/a.jsonl",
        ];
        assert_eq!(
            chosen(&files, None, "train"),
            ["data/train/a.jsonl", "data/train/b.jsonl"]
        );
        assert_eq!(chosen(&files, None, "dev"), ["data/dev/a.jsonl"]);
    }

    #[test]
    fn files_without_a_split_are_for_training() {
        let files = ["b.txt", "a.txt", "constrained.txt"];
        assert_eq!(
            chosen(&files, None, "train"),
            ["a.txt", "b.txt", "constrained.txt"],
            "a word within a word is no split"
        );
        assert!(refused(&files, None, "test").contains("no split `test`"));
        assert_eq!(
            chosen(&files, None, "a"),
            ["a.txt"],
            "a split of its own name"
        );
    }

    #[test]
    fn a_series_is_told_by_its_whole_name() {
        let files = [
            "data/train_gen-00000-of-00001.parquet",
            "data/train_sft-00000-of-00002.parquet",
            "data/train_sft-00001-of-00002-0a1b2c.parquet",
            "data/test_sft-00000-of-00001.parquet",
        ];
        assert_eq!(chosen(&files, None, "train_sft"), &files[1..3]);
        let message = refused(&files, None, "train");
        assert!(
            message.contains("test_sft, train_gen, train_sft"),
            "{message}"
        );
        let message = refused(&files[..2], None, "train_sft");
        assert!(message.contains("1 of the 2 files"), "{message}");
    }

    #[test]
    fn configurations_are_folders() {
        let files = [
            "wikitext-103-v1/train-00000-of-00001.parquet",
            "wikitext-2-raw-v1/train-00000-of-00001.parquet",
            "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        ];
        assert_eq!(
            chosen(&files, Some("wikitext-2-raw-v1"), "train"),
            &files[1..2]
        );
        let message = refused(&files, None, "train");
        assert!(
            message.contains("wikitext-103-v1, wikitext-2-raw-v1"),
            "{message}"
        );
        let message = refused(&files, Some("nonsense"), "train");
        assert!(message.contains("no configuration `nonsense`"), "{message}");
        assert_eq!(chosen(&files[1..], None, "test"), &files[2..]);
    }

    #[test]
    fn what_is_not_data_is_refused() {
        assert!(refused(&[], None, "train").contains("no files"));
        assert!(refused(&["a.csv"], None, "train").contains("it has a.csv"));
        assert!(refused(&["load.py", "a.zip"], None, "train").contains("loading script"));
        let message = refused(&["a.txt", "b.parquet", "c.txt"], None, "train");
        assert!(
            message.contains("different kinds (a.txt, b.parquet)"),
            "{message}"
        );
        // A file of another split does not matter.
        assert_eq!(
            chosen(&["train.txt", "test.jsonl"], None, "train"),
            ["train.txt"]
        );
    }
}
