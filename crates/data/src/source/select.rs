//! Which files of a folder or hub repository make up a split: pure functions of their names.
//!
//! The rules are those of Hugging Face `datasets` for repositories without a loading script, as far as names go. YAML
//! headers that map configurations to other files are not read.

use std::collections::BTreeSet;

use thiserror::Error;

use super::kind::{Format, bare};
use super::left_out::LeftOut;

/// What datasets of the hub and saved ones have beside their data.
const INFORMATION: [&str; 5] = [
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
];

/// The configuration that stands for all of them, where none has its name.
const ALL: &str = "all";

/// Files of a split.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selected {
    pub(super) format: Format,
    pub(super) files: Vec<String>,
    pub(super) left_out: LeftOut,
}

/// Why no set of files is the one that was asked for.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SelectError {
    /// Nothing that is read.
    #[error(
        "no .txt, .jsonl or .parquet file, and no other that is read ({}){}",
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
    #[error(
        "several configurations: choose one of {} with dataset_config, or `{ALL}` for the files of all folders",
        available.join(", ")
    )]
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

/// The files among `names` (relative paths) of this configuration and split, sorted, and what is left out.
pub(super) fn select(
    names: &[String],
    config: Option<&str>,
    split: &str,
) -> Result<Selected, SelectError> {
    let mut left_out = LeftOut::default();
    let data = data_of(names, &mut left_out)?;
    let data = left_out.others("of other configurations", data, |data| {
        of_config(data, config)
    })?;
    let data = left_out.others("of other splits", data, |data| of_split(data, split))?;
    let (format, mut files) = of_one_kind(data, &mut left_out)?;
    files.sort_unstable();
    check_series(&files)?;
    Ok(Selected {
        format,
        files: files.into_iter().map(str::to_owned).collect(),
        left_out,
    })
}

/// All files with data among `names`, in their order: those that a pattern matched, of which no split is chosen.
pub(super) fn all(names: &[String]) -> Result<Selected, SelectError> {
    let mut left_out = LeftOut::default();
    let data = data_of(names, &mut left_out)?;
    let (format, files) = of_one_kind(data, &mut left_out)?;
    Ok(Selected {
        format,
        files: files.into_iter().map(str::to_owned).collect(),
        left_out,
    })
}

fn data_of<'a>(names: &'a [String], left_out: &mut LeftOut) -> Result<Vec<&'a str>, SelectError> {
    let mut data = Vec::new();
    for name in names {
        let file = name.rsplit('/').next().unwrap_or(name);
        // As `datasets` has it: Python's caches, for example.
        let is_special = folders_of(name).any(|folder| folder.starts_with("__"));
        if Format::of(name).is_none() || is_special {
            left_out.add("of other kinds", name);
        } else if INFORMATION.contains(&file) {
            left_out.add("about the dataset", name);
        } else {
            data.push(name.as_str());
        }
    }
    if data.is_empty() {
        return Err(SelectError::NoData {
            found: names.to_vec(),
        });
    }
    Ok(data)
}

fn of_config<'a>(data: &[&'a str], config: Option<&str>) -> Result<Vec<&'a str>, SelectError> {
    // A licence beside the folders is not one more configuration.
    let is_beside = |name: &str| {
        Format::of(name) == Some(Format::Text)
            && !name.contains('/')
            && data.iter().any(|other| {
                other.contains('/') && Format::of(other).is_some_and(|kind| kind != Format::Text)
            })
    };
    let folders: BTreeSet<String> = data
        .iter()
        .filter(|name| !is_beside(name))
        .map(|name| config_folder(name))
        .collect();
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
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    if config == ALL {
        return Ok(data.to_vec());
    }
    Err(SelectError::NoConfig {
        config: config.into(),
        available: available(),
    })
}

/// The folder of a file without what says nothing about its configuration: splits, and parts such as `year=2024`.
fn config_folder(name: &str) -> String {
    let folders = folders_of(name)
        .filter(|folder| *folder != "data" && keyword(folder).is_none() && !folder.contains('='));
    folders.collect::<Vec<_>>().join("/")
}

/// Whether a file is named after `split`.
pub(super) fn is_of_split(name: &str, split: &str) -> bool {
    of_split(&[name], split).is_ok()
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
    series(name).map_or_else(|| bare(name), |(stem, _)| stem)
}

/// The stem and length of the series of `STEM-00000-of-00004.EXT`.
fn series(name: &str) -> Option<(&str, usize)> {
    let (rest, total) = bare(name).rsplit_once("-of-")?;
    // Newer files have a hash after the number.
    let total = total.split('-').next()?.parse().ok()?;
    let (stem, number) = rest.rsplit_once('-')?;
    number.parse::<usize>().ok().map(|_| (stem, total))
}

/// The format of most of the files, and those that have it. As for `datasets`, text beside other data is no data (a licence,
/// a list of words); anything else could be, and is refused.
fn of_one_kind<'a>(
    data: Vec<&'a str>,
    left_out: &mut LeftOut,
) -> Result<(Format, Vec<&'a str>), SelectError> {
    let mut kinds: Vec<(Format, Vec<&str>)> = Vec::new();
    for &name in &data {
        let Some(format) = Format::of(name) else {
            continue;
        };
        match kinds.iter_mut().find(|(known, _)| *known == format) {
            Some((_, names)) => names.push(name),
            None => kinds.push((format, vec![name])),
        }
    }
    kinds.sort_by_key(|(format, _)| *format == Format::Text);
    match kinds.as_mut_slice() {
        [(format, names)] => Ok((*format, std::mem::take(names))),
        [(format, names), (Format::Text, text)] if text.len() <= names.len() => {
            text.iter()
                .for_each(|name| left_out.add("text beside other data", name));
            Ok((*format, std::mem::take(names)))
        }
        _ => {
            let mut files: Vec<String> =
                kinds.iter().map(|(_, names)| names[0].to_owned()).collect();
            files.sort();
            Err(SelectError::MixedKinds { files })
        }
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
        select(&names(files), config, split).unwrap().files
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
    fn folders_of_ones_own_are_taken_together() {
        let dates = ["year=2024/a.jsonl", "year=2025/month=1/b.jsonl.gz"];
        assert_eq!(chosen(&dates, None, "train"), dates, "parts of one table");
        let topics = ["books/a.jsonl", "c.jsonl", "wiki/b.jsonl"];
        assert!(refused(&topics, None, "train").contains("or `all` for the files of all"));
        assert_eq!(chosen(&topics, Some("all"), "train"), topics);
        let own = ["all/a.jsonl", "wiki/b.jsonl"];
        assert_eq!(
            chosen(&own, Some("all"), "train"),
            own[..1],
            "a folder of that name"
        );
        let beside = ["LICENSE.txt", "corpus/a.jsonl"];
        assert_eq!(chosen(&beside, None, "train"), beside[1..]);
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let said = |files: &[&str], split| {
            let selected = select(&names(files), None, split).unwrap();
            (selected.files, selected.left_out.to_string())
        };
        let files = [
            "LICENSE.txt",
            "README.md",
            "a.JSONL",
            "b.jsonl.gz",
            "c.json",
            "dataset_infos.json",
            "notes.docx",
        ];
        let (chosen, left_out) = said(&files, "train");
        assert_eq!(chosen, ["a.JSONL", "b.jsonl.gz", "c.json"]);
        assert_eq!(
            left_out,
            "2 of other kinds (README.md, notes.docx), 1 about the dataset (dataset_infos.json), \
             1 text beside other data (LICENSE.txt)"
        );
        let (chosen, left_out) = said(&["extra.csv", "test.csv", "train.csv"], "train");
        assert_eq!(chosen, ["train.csv"]);
        assert_eq!(left_out, "2 of other splits (extra.csv, test.csv)");
        assert_eq!(said(&["a.csv"], "train").1, "");
    }

    #[test]
    fn compressed_series_are_told_too() {
        let files = [
            "en/train-00000-of-00002.json.gz",
            "en/train-00001-of-00002.json.gz",
            "en/validation-00000-of-00001.json.gz",
        ];
        assert_eq!(chosen(&files, None, "train"), files[..2]);
        let message = refused(&files[1..], None, "train");
        assert!(message.contains("1 of the 2 files"), "{message}");
    }

    #[test]
    fn what_is_not_data_is_refused() {
        assert!(refused(&[], None, "train").contains("no files"));
        assert!(refused(&["a.xml"], None, "train").contains("it has a.xml"));
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
