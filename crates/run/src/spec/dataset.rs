//! `--dataset_name`: one dataset, or several with the weights that they are mixed by.

use std::path::Path;

use super::Data;
use crate::failure::{Failure, Outcome};

/// A dataset, and its part of the mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedDataset {
    /// A name on the hub, a file, a folder, or a list of files.
    pub name: String,
    /// Relative to the others' weights.
    pub weight: Option<f64>,
}

impl NamedDataset {
    /// `NAME` or `NAME@WEIGHT`. What exists under the whole of it is that.
    pub fn parse(text: &str) -> Self {
        let whole = Self {
            name: text.to_owned(),
            weight: None,
        };
        if Path::new(text).exists() {
            return whole;
        }
        let parts = text.rsplit_once('@');
        let weighted = parts.and_then(|(name, weight)| Some((name, weight.parse().ok()?)));
        match weighted {
            Some((name, weight)) => Self {
                name: name.to_owned(),
                weight: Some(weight),
            },
            None => whole,
        }
    }

    /// As [`Self::parse`] takes it.
    pub fn text(&self) -> String {
        match self.weight {
            Some(weight) => format!("{}@{weight}", self.name),
            None => self.name.clone(),
        }
    }
}

impl Data {
    /// The datasets, at least one.
    pub fn datasets(&self) -> Vec<NamedDataset> {
        let names = self.dataset_name.iter();
        names.map(|text| NamedDataset::parse(text)).collect()
    }

    /// Refuses flags that contradict each other.
    ///
    /// # Errors
    /// Wrong usage, with the flag to change.
    pub fn check(&self) -> Outcome<()> {
        if let (Some(false), Some(strategy)) = (self.packing, self.packing_strategy) {
            return Err(Failure::usage(format!(
                "--packing_strategy {} is how documents are packed, and --packing is false; leave one of them out",
                strategy.name()
            )));
        }
        let datasets = self.datasets();
        if datasets.is_empty() {
            return Err(Failure::usage("--dataset_name is missing"));
        }
        for dataset in &datasets {
            let weight = dataset.weight.unwrap_or(1.0);
            if !(weight > 0.0 && weight.is_finite()) {
                return Err(Failure::usage(format!(
                    "--dataset_name {}: the weight behind the @ must be a number above 0",
                    dataset.text()
                )));
            }
        }
        let with = datasets.iter().find(|dataset| dataset.weight.is_some());
        let without = datasets.iter().find(|dataset| dataset.weight.is_none());
        if let (Some(with), Some(without)) = (with, without) {
            return Err(Failure::usage(format!(
                "--dataset_name {} has no weight, and {} has one: give all of them one (NAME@WEIGHT), or none",
                without.name,
                with.text()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_a_number_behind_the_last_at() {
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("a@2");
        std::fs::write(&named, "").unwrap();
        let there = named.to_str().unwrap();
        for (text, name, weight) in [
            ("wikitext", "wikitext", None),
            ("a/b@0.25", "a/b", Some(0.25)),
            ("x@y@3", "x@y", Some(3.0)),
            ("x@y", "x@y", None),
            ("a.jsonl,b/*.jsonl@1e-1", "a.jsonl,b/*.jsonl", Some(0.1)),
            (there, there, None),
        ] {
            let parsed = NamedDataset::parse(text);
            assert_eq!((parsed.name.as_str(), parsed.weight), (name, weight));
            assert_eq!(NamedDataset::parse(&parsed.text()), parsed);
        }
    }
}
