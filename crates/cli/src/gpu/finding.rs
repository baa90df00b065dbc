//! What a stage has found.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tandem_run::failure::{Failure, Outcome};
use tandem_run::storage::write_whole;

use crate::doctor::Section;

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// All is as it should be.
    Ok,
    /// Something is wrong.
    Failed,
    /// This machine, or this build, does not have what it takes.
    NotPossible,
}

/// A number with its unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Number {
    pub name: String,
    pub value: f64,
    pub unit: String,
}

/// Rows under a title.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Table {
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// What one stage has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Finding {
    pub stage: String,
    pub verdict: Verdict,
    /// Why it failed or was not possible; or what a reader should know.
    pub why: Option<String>,
    pub seconds: f64,
    pub numbers: Vec<Number>,
    pub tables: Vec<Table>,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub version: &'static str,
    pub device: &'static str,
    /// Small sizes.
    pub quick: bool,
    pub machine: Vec<Section>,
    pub findings: Vec<Finding>,
    pub seconds: f64,
}

impl Finding {
    fn new(verdict: Verdict, why: Option<String>) -> Self {
        Self {
            stage: String::new(),
            verdict,
            why,
            seconds: 0.0,
            numbers: Vec::new(),
            tables: Vec::new(),
        }
    }

    /// All is well.
    pub(super) fn ok() -> Self {
        Self::new(Verdict::Ok, None)
    }

    /// Something is wrong.
    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self::new(Verdict::Failed, Some(why.into()))
    }

    /// It cannot be checked here.
    pub(super) fn not_possible(why: impl Into<String>) -> Self {
        Self::new(Verdict::NotPossible, Some(why.into()))
    }

    /// Well, unless there are problems.
    pub(super) fn without(problems: &[String]) -> Self {
        match problems {
            [] => Self::ok(),
            _ => Self::failed(problems.join("; ")),
        }
    }

    /// With something that a reader should know.
    pub(super) fn noting(self, why: impl Into<String>) -> Self {
        let why = match self.why {
            Some(already) => format!("{already}; {}", why.into()),
            None => why.into(),
        };
        Self {
            why: Some(why),
            ..self
        }
    }

    pub(super) fn number(mut self, name: impl Into<String>, value: f64, unit: &str) -> Self {
        self.numbers.push(Number {
            name: name.into(),
            value,
            unit: unit.to_owned(),
        });
        self
    }

    pub(super) fn table(mut self, title: &str, columns: &[&str], rows: Vec<Vec<String>>) -> Self {
        self.tables.push(Table {
            title: title.to_owned(),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            rows,
        });
        self
    }

    pub(super) fn named(self, stage: &str, seconds: f64) -> Self {
        Self {
            stage: stage.to_owned(),
            seconds,
            ..self
        }
    }

    /// The number of this name.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        let found = self.numbers.iter().find(|number| number.name == name);
        found.map(|number| number.value)
    }

    /// Leaves it in `folder` for the process that started the stage.
    pub(super) fn write(&self, folder: &Path, stage: &str) -> Outcome<()> {
        let text = serde_json::to_string(self).map_err(Failure::other)?;
        write_whole(&file(folder, stage), &text)
    }

    /// What the stage of this name left.
    pub(super) fn read(folder: &Path, stage: &str) -> Outcome<Self> {
        let path = file(folder, stage);
        let cannot =
            |error: &dyn std::fmt::Display| Failure::other(format!("{}: {error}", path.display()));
        let text = fs::read_to_string(&path).map_err(|error| cannot(&error))?;
        serde_json::from_str(&text).map_err(|error| cannot(&error))
    }
}

fn file(folder: &Path, stage: &str) -> PathBuf {
    folder.join(format!("{stage}.json"))
}
