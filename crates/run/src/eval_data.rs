//! The rows that a model is evaluated on: made as those that it is trained on, of another split or another dataset.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tandem_data::{
    BatchSource, Hub, Loader, LoaderOptions, Position, Progress, Rows, Sampler, SelectError, Share,
    Source, SourceError, TokenCache, TokenDataset, Verify,
};
use tandem_model::ModelConfig;
use tandem_trainer::EvalSet;

use crate::examples;
use crate::failure::{Failure, Outcome};
use crate::spec::{Data, EvalChoice};

/// Rows to evaluate on.
pub struct EvalData {
    /// The rows.
    pub dataset: Arc<TokenDataset>,
    /// The file with their tokens.
    pub token_cache: PathBuf,
    /// What they are, in a line.
    pub described: String,
    /// What of the data is not evaluated and why, a line each.
    pub left_out: Vec<String>,
}

/// Where the tokens come from and go to.
pub struct Place<'a> {
    /// Folder of the tokenizer and its chat template.
    pub model_dir: &'a Path,
    /// The model that they are for.
    pub config: &'a ModelConfig,
    /// Where caches are.
    pub cache_dir: &'a Path,
    /// The cache that whoever started this process has built and checked.
    pub built: Option<&'a Path>,
}

impl EvalData {
    /// Finds the split, and makes tokens and rows of it. `flag` names the dataset to the user.
    ///
    /// # Errors
    /// Wrong usage: no such split, no rows, or none with a target. As [`examples`] for the rest.
    pub fn prepare(
        choice: &EvalChoice,
        flag: &str,
        place: &Place<'_>,
        hub: &Hub,
        progress: &mut dyn Progress,
    ) -> Outcome<Self> {
        let named = |failure: Failure| Failure {
            message: format!("{flag}: {}", failure.message),
            ..failure
        };
        let of_flag = |failure: Failure| Failure::usage(format!("{flag}: {}", failure.message));
        let mut left_out = Vec::new();
        let (cache, name) = match place.built.filter(|path| path.is_file()) {
            // Whoever built it has said what it is.
            Some(path) => {
                let cache = TokenCache::open(path, Verify::Header).map_err(Failure::other)?;
                (cache, choice.dataset.clone())
            }
            None => {
                let (source, data) = resolve(choice, flag, hub, progress)?;
                let name = format!("{}, split {}", choice.dataset, data.dataset_split);
                let tokenizer = examples::model_tokenizer(&data, place.model_dir, place.config)?;
                let made = examples::cache(
                    &data,
                    (&name, &source),
                    &tokenizer,
                    place.model_dir,
                    place.cache_dir,
                    progress,
                )
                .map_err(named)?;
                left_out = made.1;
                (made.0, name)
            }
        };
        let token_cache = cache.path().to_owned();
        let dataset = examples::rows(&choice.data, cache).map_err(of_flag)?;
        let described = format!("{name}: {} rows", dataset.len());
        Ok(Self {
            dataset: Arc::new(dataset),
            token_cache,
            described,
            left_out,
        })
    }

    /// What is evaluated of it.
    ///
    /// # Errors
    /// Wrong usage: no row of it has a target.
    pub fn set(&self, batch_size: usize, max_batches: u64, flag: &str) -> Outcome<EvalSet> {
        let set = EvalSet {
            rows: Arc::clone(&self.dataset) as Arc<dyn Rows>,
            batch_size,
            max_batches,
        };
        if !has_target(&set)? {
            return Err(Failure::usage(format!(
                "{flag}: none of the {} rows that are evaluated has a target; use other data, or a larger --seq_length",
                set.rows_used()
            )));
        }
        Ok(set)
    }
}

/// The files of the first split that there is.
///
/// # Errors
/// Wrong usage: there is none, or its files cannot be read.
pub fn resolve(
    choice: &EvalChoice,
    flag: &str,
    hub: &Hub,
    progress: &mut dyn Progress,
) -> Outcome<(Source, Data)> {
    let mut missing = None;
    // A file that is trained on is no split of itself, whatever it is called.
    let is_file = !choice.is_named && is_file(&choice.dataset);
    for split in choice.splits.iter().filter(|_| !is_file) {
        let data = Data {
            dataset_split: split.clone(),
            ..choice.data.clone()
        };
        match Source::resolve(&examples::options(&data, &choice.dataset), hub, progress) {
            Ok(source) => return Ok((source, data)),
            Err(
                error @ (SourceError::SplitOfFile { .. }
                | SourceError::Select {
                    source: SelectError::NoSplit { .. },
                    ..
                }),
            ) => missing = Some(error.to_string()),
            Err(error) => return Err(Failure::usage(format!("{flag}: {error}"))),
        }
    }
    let name = &choice.dataset;
    let why = match missing {
        Some(why) if choice.is_named => return Err(Failure::usage(format!("{flag}: {why}"))),
        Some(why) => why,
        None => format!("{name} is taken whole"),
    };
    Err(Failure::usage(format!(
        "there is nothing to evaluate on: the dataset has no split {} ({why}); name another dataset with --eval_dataset_name, or \
         a split with --eval_split, or pass --eval_strategy no",
        choice.splits.join(" or ")
    )))
}

fn is_file(name: &str) -> bool {
    let path = Path::new(name);
    path.is_file() || (!path.exists() && tandem_data::file_list(name).is_some())
}

/// Whether any row has a target; nearly always the first one that is looked at.
fn has_target(set: &EvalSet) -> Outcome<bool> {
    let share = Share {
        dp_rank: 0,
        dp_size: 1,
        batch_size: 1,
        micro_batches: 1,
    };
    let options = LoaderOptions {
        share,
        start: Position::default(),
    };
    let sampler = Sampler::in_order(set.rows_used(), 1).map_err(Failure::other)?;
    let mut loader =
        Loader::new(Arc::clone(&set.rows), sampler, options).map_err(Failure::other)?;
    while let Some(batches) = loader.next_step().map_err(Failure::other)? {
        if batches.iter().any(|batch| batch.targets() > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}
