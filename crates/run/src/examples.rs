//! From the flags about data to examples and rows: for training, and for looking at them.

use std::path::Path;
use std::sync::Arc;

use tandem_data::chat::{ChatError, ChatTemplate};
use tandem_data::{
    CacheError, DatasetOptions, Encoder, ExampleKind, Hub, LossOn, Mixture, Packing, Part,
    Progress, RowLayout, Rows, Source, SourceError, TokenCache, TokenDataset, Tokenizer,
    TokenizerError,
};
use tandem_model::ModelConfig;

use crate::failure::{Failure, Outcome};
use crate::spec::Data;

/// What the data crate is asked for, for the dataset `name`.
pub fn options(data: &Data, name: &str) -> DatasetOptions {
    DatasetOptions {
        name: name.to_owned(),
        config: data.dataset_config.clone(),
        split: data.dataset_split.clone(),
        text_column: data.text_column.clone(),
        kind: data.dataset_format,
        percentage: data.dataset_percentage,
    }
}

/// The files of one of the datasets.
pub fn source(data: &Data, name: &str, hub: &Hub, progress: &mut dyn Progress) -> Outcome<Source> {
    Source::resolve(&options(data, name), hub, progress).map_err(|error| match error {
        // The flag asks for what the file has not.
        SourceError::OtherKind { .. } => usage(error),
        SourceError::NoColumn { .. } => no_column(&error),
        other => Failure::other(format!("--dataset_name: {other}")),
    })
}

/// Whether a dataset of this name is on this machine, or nowhere: no name on the hub is like it.
pub fn is_path(name: &str) -> bool {
    Path::new(name).exists() || tandem_data::file_list(name).is_some()
}

/// The tokenizer in `dir`.
pub fn tokenizer(data: &Data, dir: &Path) -> Outcome<Tokenizer> {
    let loaded = match &data.eos_token {
        Some(token) => Tokenizer::load_with_eos(dir, token),
        None => Tokenizer::load(dir),
    };
    loaded.map_err(|error| match error {
        TokenizerError::NoEos { .. } | TokenizerError::NoSuchEos { .. } => usage(error),
        other => Failure::other(other),
    })
}

/// The tokenizer in `dir`, for the model of `config`.
pub fn model_tokenizer(data: &Data, dir: &Path, config: &ModelConfig) -> Outcome<Tokenizer> {
    let tokenizer = tokenizer(data, dir)?;
    if tokenizer.vocab_size() <= config.vocab_size {
        return Ok(tokenizer);
    }
    Err(Failure::other(format!(
        "the tokenizer of {} has {} tokens, but the model's vocabulary has {}; they belong to different models",
        dir.display(),
        tokenizer.vocab_size(),
        config.vocab_size
    )))
}

/// What makes tokens of examples of this kind, with the chat template of `dir` unless another is named.
pub fn encoder(
    data: &Data,
    kind: ExampleKind,
    tokenizer: Tokenizer,
    dir: &Path,
) -> Outcome<Encoder> {
    let file = data.chat_template_path.as_deref();
    let template = match kind {
        ExampleKind::Text if file.is_some() => {
            return Err(Failure::usage(
                "--chat_template_path is for conversations, and the dataset has text (--dataset_format)",
            ));
        }
        ExampleKind::Text => None,
        ExampleKind::Messages | ExampleKind::PromptCompletion => {
            match ChatTemplate::load(dir, file) {
                // Text on both sides needs none.
                Err(ChatError::Missing { .. }) if kind == ExampleKind::PromptCompletion => None,
                template => Some(template.map_err(usage)?),
            }
        }
    };
    if data.assistant_only_loss && kind != ExampleKind::Messages {
        return Err(Failure::usage(format!(
            "--assistant_only_loss is for conversations (a column `messages` or `conversations`), and the dataset is {}",
            kind.name()
        )));
    }
    let loss_on = LossOn {
        completion_only: data.completion_only_loss,
        assistant_only: data.assistant_only_loss,
    };
    Ok(Encoder::new(tokenizer, kind, template, loss_on))
}

/// The tokens of `source`, which is `what` in messages, with the chat template in `model_dir`; and what of it is left out, a line
/// each.
pub fn cache(
    data: &Data,
    (what, source): (&str, &Source),
    tokenizer: &Tokenizer,
    model_dir: &Path,
    cache_dir: &Path,
    progress: &mut dyn Progress,
) -> Outcome<(TokenCache, Vec<String>)> {
    let encoder = encoder(data, source.kind(), tokenizer.clone(), model_dir)?;
    let cache =
        TokenCache::build_or_open(source, &encoder, cache_dir, progress).map_err(failure)?;
    let files = source.left_out().map(|files| format!("files: {files}"));
    let mut left_out: Vec<String> = files.into_iter().collect();
    if cache.refused() > 0 {
        left_out.push(format!(
            "{} of {} rows of {what}, which the chat template refuses (`tandem data preview --documents` says why)",
            cache.refused(),
            cache.refused() + cache.documents()
        ));
    }
    Ok((cache, left_out))
}

/// Why there is no cache. What is wrong with rows is the user's to mend.
pub fn failure(error: CacheError) -> Failure {
    match error {
        CacheError::Example { .. }
        | CacheError::AllRefused { .. }
        | CacheError::Empty { .. }
        | CacheError::NothingTrained { .. } => usage(error),
        CacheError::Source(source @ SourceError::NoColumn { .. }) => no_column(&source),
        other => Failure::other(other),
    }
}

fn no_column(error: &SourceError) -> Failure {
    // Of a table without a header, the first row is taken for one.
    let hint = match error {
        SourceError::NoColumn {
            path, line: None, ..
        } if is_table(path) => "; a table must begin with the names of its columns",
        _ => "",
    };
    usage(format!("--dataset_name: {error}{hint}"))
}

fn is_table(path: &Path) -> bool {
    let name = path.to_string_lossy().to_lowercase();
    [".csv", ".tsv"].iter().any(|ending| name.contains(ending))
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::usage(error.to_string())
}

/// The rows of a cache.
pub fn rows(data: &Data, cache: TokenCache) -> Outcome<TokenDataset> {
    let layout = layout(data, cache.kind());
    TokenDataset::new(Arc::new(cache), data.seq_length, layout).map_err(Failure::other)
}

/// The rows of all datasets. `caches` are in the order of the flags.
pub fn mixture(data: &Data, caches: Vec<TokenCache>, seed: u64) -> Outcome<Mixture> {
    let parts = data.datasets().into_iter().zip(caches);
    let parts: Outcome<Vec<Part>> = parts
        .map(|(named, cache)| {
            Ok(Part {
                name: named.name,
                dataset: Arc::new(rows(data, cache)?),
                weight: named.weight,
            })
        })
        .collect();
    Mixture::new(parts?, seed).map_err(|error| usage(format!("--dataset_name: {error}")))
}

/// How documents of this kind become rows.
fn layout(data: &Data, kind: ExampleKind) -> RowLayout {
    // Nobody wants a conversation to see the end of another one without having asked for it.
    let is_text = kind == ExampleKind::Text;
    let packs = data
        .packing
        .unwrap_or(is_text || data.packing_strategy.is_some());
    if !packs {
        return RowLayout::PADDED;
    }
    let by_kind = match is_text {
        true => Packing::Wrapped,
        false => Packing::BestFit,
    };
    let strategy = data.packing_strategy.unwrap_or(by_kind);
    let sees_others = is_text && strategy == Packing::Wrapped;
    RowLayout {
        packing: Some(strategy),
        document_mask: data.document_mask.unwrap_or(!sees_others),
    }
}

/// What the data are and how much of them is trained, in lines; nothing of a text that is cut into rows.
pub fn described(data: &Data, mixture: &Mixture) -> Vec<String> {
    let parts = mixture.parts();
    if let [one] = parts {
        let layout = layout(data, one.dataset.kind());
        let is_plain = one.dataset.kind() == ExampleKind::Text
            && (layout == RowLayout::WRAPPED || layout.packing.is_none());
        return match is_plain {
            true => Vec::new(),
            false => vec![described_part(data, one)],
        };
    }
    let all = mixture.len() as f64;
    let lines = parts.iter().enumerate().map(|(index, part)| {
        let (rows, of_all) = (part.dataset.len(), mixture.epoch_rows(index));
        format!(
            "{}: {}; {rows} rows, {of_all} in an epoch ({:.1}% of it)",
            part.name,
            described_part(data, part),
            100.0 * of_all as f64 / all
        )
    });
    lines.collect()
}

fn described_part(data: &Data, part: &Part) -> String {
    let (dataset, cache) = (&part.dataset, part.dataset.cache());
    let what = match cache.kind() {
        ExampleKind::Text => "documents",
        ExampleKind::Messages if data.assistant_only_loss => "conversations, loss on the assistant",
        ExampleKind::Messages => "conversations, loss on all tokens",
        ExampleKind::PromptCompletion if data.completion_only_loss => {
            "prompts with completions, loss on completions"
        }
        ExampleKind::PromptCompletion => "prompts with completions, loss on all tokens",
    };
    let layout = layout(data, cache.kind());
    let mut rows = match (layout.packing, dataset.padding()) {
        (None, _) => "one a row".to_owned(),
        (Some(strategy), Some(padding)) => {
            format!(
                "packed ({}, {:.1}% padding)",
                strategy.name(),
                100.0 * padding
            )
        }
        (Some(strategy), None) => format!("joined and cut into rows ({})", strategy.name()),
    };
    if layout.packing.is_some() {
        rows.push_str(match layout.document_mask {
            true => ", none sees another",
            false => ", they see each other",
        });
    }
    format!(
        "{} {what}, {rows}; {} of {} tokens are trained",
        cache.documents(),
        cache.trained_tokens(),
        cache.tokens()
    )
}
