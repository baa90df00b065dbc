//! What a model sees of a dataset: for people, or as JSON.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tandem_data::{
    Encoded, Encoder, ExampleError, Hub, IGNORED_LABEL, Rows, TokenCache, TokenDataset, Weights,
};

use crate::examples;
use crate::failure::{Failure, Outcome};
use crate::spec::Data;

/// Characters of a bar of the histogram.
const BAR: usize = 40;

/// Takes the lines, as they come.
pub type Lines<'a> = &'a mut dyn FnMut(&str) -> Outcome<()>;

/// A dataset and the tokenizer that it is seen with.
pub struct Preview<'a> {
    data: &'a Data,
    dir: PathBuf,
    hub: Hub,
}

impl<'a> Preview<'a> {
    /// `model_name` is a folder with a tokenizer, or a model on the hub.
    pub fn new(data: &'a Data, model_name: &str) -> Outcome<Self> {
        let hub = Hub::from_env().map_err(Failure::other)?;
        let folder = Path::new(model_name);
        let dir = match folder.is_dir() {
            true => folder.to_owned(),
            false => hub
                .model_dir(model_name, Weights::NotNeeded, &mut ())
                .map_err(Failure::other)?,
        };
        Ok(Self { data, dir, hub })
    }

    fn open(&self) -> Outcome<(tandem_data::Source, Encoder)> {
        let source = examples::source(self.data, &self.hub, &mut ())?;
        let tokenizer = examples::tokenizer(self.data, &self.dir)?;
        let encoder = examples::encoder(self.data, source.kind(), tokenizer, &self.dir)?;
        Ok((source, encoder))
    }

    /// A line of JSON for each document in the order of the files, before packing and cutting: `{document, input_ids,
    /// labels}`, or `{document, error}` for one that is not trained.
    pub fn documents(&self, lines: Lines<'_>) -> Outcome<()> {
        let (source, encoder) = self.open()?;
        for (index, document) in source.documents().map_err(Failure::other)?.enumerate() {
            let document = document.map_err(Failure::other)?;
            let line = match encoder.encode(&document) {
                Ok(encoded) => self.document(index, &encoder, encoded),
                Err(ExampleError::Tokenizer(error)) => return Err(Failure::other(error)),
                Err(error) => json!({"document": index, "error": error.to_string()}),
            };
            lines(&line.to_string())?;
        }
        Ok(())
    }

    fn document(&self, index: usize, encoder: &Encoder, encoded: Encoded) -> Value {
        let Encoded {
            mut tokens,
            mut trained,
        } = encoded;
        if !encoder.ends_documents() && !tokens.is_empty() {
            tokens.push(encoder.tokenizer().eos_id());
            trained.push(true);
        }
        let pairs = tokens.iter().zip(&trained);
        let labels: Vec<i64> = pairs
            .map(|(token, is)| {
                if *is {
                    i64::from(*token)
                } else {
                    IGNORED_LABEL
                }
            })
            .collect();
        json!({"document": index, "input_ids": tokens, "labels": labels})
    }

    /// All documents as rows, through a cache that is gone when this is over.
    fn dataset(&self) -> Outcome<(TokenDataset, Encoder, Option<String>)> {
        let (source, encoder) = self.open()?;
        let folder = tempfile::tempdir().map_err(Failure::other)?;
        let cache = TokenCache::build_or_open(&source, &encoder, folder.path(), &mut ())
            .map_err(examples::failure)?;
        let described = examples::described(self.data, &cache);
        Ok((examples::rows(self.data, cache)?, encoder, described))
    }

    /// A line of JSON for each row, at most `count`: `{row, input_ids, labels, position_ids, document_ids}`. Padding is
    /// document -1.
    pub fn rows(&self, count: Option<u64>, lines: Lines<'_>) -> Outcome<()> {
        let (dataset, _, _) = self.dataset()?;
        for index in 0..dataset.len().min(count.unwrap_or(u64::MAX)) {
            let row = Row::of(&dataset, index);
            let positions: Vec<usize> = row
                .mask
                .iter()
                .enumerate()
                .map(|(at, is)| at * usize::from(*is))
                .collect();
            let documents: Vec<i64> = row.mask.iter().map(|is| i64::from(*is) - 1).collect();
            let line = json!({
                "row": index,
                "input_ids": row.input_ids,
                "labels": row.labels,
                "position_ids": positions,
                "document_ids": documents,
            });
            lines(&line.to_string())?;
        }
        Ok(())
    }

    /// The first `count` rows as text, and how long all of them are. What is trained is shown by colours, or in brackets.
    pub fn text(&self, count: u64, has_colors: bool, lines: Lines<'_>) -> Outcome<()> {
        let (dataset, encoder, described) = self.dataset()?;
        if let Some(described) = described {
            lines(&described)?;
        }
        let (trained, plain, end) = match has_colors {
            true => ("\u{1b}[32m", "\u{1b}[2m", "\u{1b}[0m"),
            false => ("⟦", "", "⟧"),
        };
        lines(&format!(
            "{trained}trained{end} {plain}not trained{}",
            if has_colors { end } else { "" }
        ))?;
        let mut tally = Tally::default();
        for index in 0..dataset.len() {
            let row = Row::of(&dataset, index);
            tally.add(&row);
            if index >= count {
                continue;
            }
            lines(&format!(
                "--- row {index}: {} tokens, {} trained, {} padding",
                row.tokens(),
                row.targets(),
                row.padding()
            ))?;
            let mut text = String::new();
            for (is_trained, part) in row.parts() {
                let words = encoder.tokenizer().decode(&part);
                match (is_trained, has_colors) {
                    (true, _) => text.extend([trained, &words, end]),
                    (false, true) => text.extend([plain, &words, end]),
                    (false, false) => text.push_str(&words),
                }
            }
            lines(&text)?;
        }
        tally
            .lines(dataset.seq_length())
            .iter()
            .try_for_each(|line| lines(line))
    }
}

/// A row of a dataset.
struct Row {
    input_ids: Vec<i64>,
    labels: Vec<i64>,
    mask: Vec<u8>,
}

impl Row {
    fn of(dataset: &TokenDataset, index: u64) -> Self {
        let seq = dataset.seq_length();
        let mut row = Self {
            input_ids: vec![0; seq],
            labels: vec![0; seq],
            mask: vec![0; seq],
        };
        dataset.fill(index, &mut row.input_ids, &mut row.labels, &mut row.mask);
        row
    }

    fn tokens(&self) -> usize {
        self.mask.iter().filter(|is| **is == 1).count()
    }

    fn padding(&self) -> usize {
        self.mask.len() - self.tokens()
    }

    /// The first token has none before it that could predict it.
    fn targets(&self) -> usize {
        self.labels
            .iter()
            .skip(1)
            .filter(|label| **label != IGNORED_LABEL)
            .count()
    }

    /// Runs of tokens that are trained, or not.
    fn parts(&self) -> Vec<(bool, Vec<u32>)> {
        let mut parts: Vec<(bool, Vec<u32>)> = Vec::new();
        for (at, (token, label)) in self.input_ids.iter().zip(&self.labels).enumerate() {
            if self.mask[at] == 0 {
                break;
            }
            let (is_trained, token) = (at > 0 && *label != IGNORED_LABEL, *token as u32);
            match parts.last_mut() {
                Some((was_trained, part)) if *was_trained == is_trained => part.push(token),
                _ => parts.push((is_trained, vec![token])),
            }
        }
        parts
    }
}

/// How long rows are.
#[derive(Default)]
struct Tally {
    lengths: Vec<usize>,
    targets: usize,
    padding: usize,
}

impl Tally {
    fn add(&mut self, row: &Row) {
        self.lengths.push(row.tokens());
        self.targets += row.targets();
        self.padding += row.padding();
    }

    fn lines(&self, seq_length: usize) -> Vec<String> {
        let all = self.lengths.len() * seq_length;
        let percent = |part: usize| 100.0 * part as f64 / all.max(1) as f64;
        let mut lines = vec![format!(
            "--- {} rows of {seq_length} tokens: {:.1}% padding, {:.1}% trained; lengths:",
            self.lengths.len(),
            percent(self.padding),
            percent(self.targets)
        )];
        let width = seq_length.div_ceil(8).max(1);
        let mut counts = vec![0; seq_length.div_ceil(width)];
        for length in &self.lengths {
            counts[(length.max(&1) - 1) / width] += 1;
        }
        let most = counts.iter().copied().max().unwrap_or(0).max(1);
        for (index, count) in counts.iter().enumerate() {
            let bar = "█".repeat((count * BAR).div_ceil(most));
            let (first, last) = (index * width + 1, ((index + 1) * width).min(seq_length));
            lines.push(format!("{:>13} {bar} {count}", format!("{first}-{last}")));
        }
        lines
    }
}
