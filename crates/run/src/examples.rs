//! From the flags about data to examples and rows: for training, and for looking at them.

use std::path::Path;
use std::sync::Arc;

use tandem_data::chat::{ChatError, ChatTemplate};
use tandem_data::{
    CacheError, DatasetOptions, Encoder, ExampleKind, Hub, LossOn, Progress, Source, SourceError,
    TokenCache, TokenDataset, Tokenizer,
};

use tandem_model::ModelConfig;

use crate::failure::{Failure, Outcome};
use crate::spec::Data;

/// What the data crate is asked for.
pub fn options(data: &Data) -> DatasetOptions {
    DatasetOptions {
        name: data.dataset_name.clone(),
        config: data.dataset_config.clone(),
        split: data.dataset_split.clone(),
        text_column: data.text_column.clone(),
        kind: data.dataset_format,
        percentage: data.dataset_percentage,
    }
}

/// The files.
pub fn source(data: &Data, hub: &Hub, progress: &mut dyn Progress) -> Outcome<Source> {
    Source::resolve(&options(data), hub, progress).map_err(|error| match error {
        // The flag asks for what the file has not.
        SourceError::OtherKind { .. } => usage(error),
        other => Failure::other(format!("--dataset_name: {other}")),
    })
}

/// The tokenizer in `dir`.
pub fn tokenizer(data: &Data, dir: &Path) -> Outcome<Tokenizer> {
    let tokenizer = Tokenizer::load(dir).map_err(Failure::other)?;
    match &data.eos_token {
        Some(token) => tokenizer.with_eos(token).map_err(usage),
        None => Ok(tokenizer),
    }
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

/// The tokens of `source`, with the tokenizer and chat template in `model_dir`, and what of it is left out, a line each.
pub fn cache(
    data: &Data,
    source: &Source,
    model_dir: &Path,
    config: &ModelConfig,
    cache_dir: &Path,
    progress: &mut dyn Progress,
) -> Outcome<(TokenCache, Vec<String>)> {
    let tokenizer = tokenizer(data, model_dir)?;
    if tokenizer.vocab_size() > config.vocab_size {
        return Err(Failure::other(format!(
            "the tokenizer of {} has {} tokens, but the model's vocabulary has {}; they belong to different models",
            model_dir.display(),
            tokenizer.vocab_size(),
            config.vocab_size
        )));
    }
    let encoder = encoder(data, source.kind(), tokenizer, model_dir)?;
    let cache =
        TokenCache::build_or_open(source, &encoder, cache_dir, progress).map_err(failure)?;
    let files = source.left_out().map(|files| format!("files: {files}"));
    let mut left_out: Vec<String> = files.into_iter().collect();
    if cache.refused() > 0 {
        left_out.push(format!(
            "{} of {} rows of the dataset, which the chat template refuses (`tandem data preview --documents` says why)",
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
        other => Failure::other(other),
    }
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::usage(error.to_string())
}

/// The rows of a cache.
pub fn rows(data: &Data, cache: TokenCache) -> Outcome<TokenDataset> {
    let packing = packs(data, &cache);
    TokenDataset::new(Arc::new(cache), data.seq_length, packing).map_err(Failure::other)
}

fn packs(data: &Data, cache: &TokenCache) -> bool {
    // Nobody wants a conversation to see the end of another one without having asked for it.
    let is_text = cache.kind() == ExampleKind::Text;
    data.packing.unwrap_or(is_text)
}

/// What the data are and how much of them is trained, in a line; nothing of text.
pub fn described(data: &Data, cache: &TokenCache) -> Option<String> {
    let what = match cache.kind() {
        ExampleKind::Text => return None,
        ExampleKind::Messages if data.assistant_only_loss => "conversations, loss on the assistant",
        ExampleKind::Messages => "conversations, loss on all tokens",
        ExampleKind::PromptCompletion if data.completion_only_loss => {
            "prompts with completions, loss on completions"
        }
        ExampleKind::PromptCompletion => "prompts with completions, loss on all tokens",
    };
    let rows = match packs(data, cache) {
        true => "joined and cut into rows",
        false => "one a row",
    };
    Some(format!(
        "{} {what}, {rows}; {} of {} tokens are trained",
        cache.documents(),
        cache.trained_tokens(),
        cache.tokens()
    ))
}
