//! What a model sees of a dataset: for people, or as JSON.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tandem_data::{
    Encoded, Encoder, ExampleError, Hub, IGNORED_LABEL, Mixture, Rows, Source, TokenCache,
    Tokenizer, Weights,
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

    fn open(&self) -> Outcome<Vec<(Source, Encoder)>> {
        self.data.check()?;
        let tokenizer = self.tokenizer()?;
        let datasets = self.data.datasets();
        let open = datasets.iter().map(|dataset| {
            let source = examples::source(self.data, &dataset.name, &self.hub, &mut ())?;
            let tokenizer = tokenizer.clone();
            let encoder = examples::encoder(self.data, source.kind(), tokenizer, &self.dir)?;
            Ok((source, encoder))
        });
        open.collect()
    }

    fn tokenizer(&self) -> Outcome<Tokenizer> {
        examples::tokenizer(self.data, &self.dir)
    }

    /// A line of JSON for each document in the order of the files, before packing and cutting: `{document, input_ids,
    /// labels}`, or `{document, error}` for one that is not trained. Documents of several datasets are counted through.
    pub fn documents(&self, lines: Lines<'_>) -> Outcome<()> {
        let mut index = 0;
        for (source, encoder) in self.open()? {
            for document in source.documents().map_err(Failure::other)? {
                let document = document.map_err(Failure::other)?;
                let line = match encoder.encode(&document) {
                    Ok(encoded) => self.document(index, &encoder, encoded),
                    Err(ExampleError::Tokenizer(error)) => return Err(Failure::other(error)),
                    Err(error) => json!({"document": index, "error": error.to_string()}),
                };
                lines(&line.to_string())?;
                index += 1;
            }
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

    /// All documents as rows, through caches that are gone when this is over.
    fn dataset(&self) -> Outcome<Mixture> {
        let folder = tempfile::tempdir().map_err(Failure::other)?;
        let open = self.open()?;
        let caches = open.iter().map(|(source, encoder)| {
            TokenCache::build_or_open(source, encoder, folder.path(), &mut ())
                .map_err(examples::failure)
        });
        examples::mixture(self.data, caches.collect::<Outcome<_>>()?, 0)
    }

    /// A line of JSON for each row, at most `count`: `{row, input_ids, labels, position_ids, document_ids}`. Padding is
    /// document -1; documents that see each other are one.
    pub fn rows(&self, count: Option<u64>, lines: Lines<'_>) -> Outcome<()> {
        let dataset = self.dataset()?;
        for index in 0..dataset.all_rows().min(count.unwrap_or(u64::MAX)) {
            let row = Row::of(&dataset, index);
            let (positions, documents): (Vec<usize>, Vec<i64>) = row.places().unzip();
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
        let dataset = self.dataset()?;
        let tokenizer = self.tokenizer()?;
        for line in examples::described(self.data, &dataset) {
            lines(&line)?;
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
        for index in 0..dataset.all_rows() {
            let row = Row::of(&dataset, index);
            tally.add(&row);
            if index >= count {
                continue;
            }
            let documents = match row.starts.len() {
                1 => String::new(),
                count => format!(" in {count} documents (│ between them)"),
            };
            lines(&format!(
                "--- row {index}: {} tokens{documents}, {} trained, {} padding",
                row.tokens(),
                row.targets(),
                row.padding()
            ))?;
            let mut text = String::new();
            for (begins, is_trained, part) in row.parts() {
                let words = tokenizer.decode(&part);
                if begins {
                    text.push('│');
                }
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
    /// Where its documents begin.
    starts: Vec<u32>,
}

impl Row {
    fn of(dataset: &Mixture, index: u64) -> Self {
        let seq = dataset.seq_length();
        let mut row = Self {
            input_ids: vec![0; seq],
            labels: vec![0; seq],
            mask: vec![0; seq],
            starts: dataset.documents(index),
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

    /// For each token, its position in its document and the document's number; 0 and -1 in padding.
    fn places(&self) -> impl Iterator<Item = (usize, i64)> {
        self.mask.iter().enumerate().map(|(at, is)| {
            if *is == 0 {
                return (0, -1);
            }
            let begun = self.starts.partition_point(|&start| start as usize <= at);
            (at - self.starts[begun - 1] as usize, begun as i64 - 1)
        })
    }

    /// Whether the token at this place is a target: the first of a row has none before it that could predict it.
    fn is_target(&self, at: usize) -> bool {
        at > 0 && self.labels[at] != IGNORED_LABEL
    }

    fn targets(&self) -> usize {
        let places = 0..self.labels.len();
        places.filter(|&at| self.is_target(at)).count()
    }

    /// Runs of tokens: whether a document other than the first begins with it, whether it is trained, and its tokens.
    fn parts(&self) -> Vec<(bool, bool, Vec<u32>)> {
        let mut parts: Vec<(bool, bool, Vec<u32>)> = Vec::new();
        for (at, (token, (position, document))) in
            self.input_ids.iter().zip(self.places()).enumerate()
        {
            if document < 0 {
                break;
            }
            let begins = position == 0 && document > 0;
            let (is_trained, token) = (self.is_target(at), *token as u32);
            match parts.last_mut() {
                Some((_, was_trained, part)) if *was_trained == is_trained && !begins => {
                    part.push(token);
                }
                _ => parts.push((begins, is_trained, vec![token])),
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
