//! What can be wrong with a chat template or a conversation.

use std::path::PathBuf;

use thiserror::Error;

/// Why there is no template, or why it does not take a conversation.
#[derive(Debug, Error)]
pub enum ChatError {
    /// Conversations, and nothing that writes them down.
    #[error(
        "{} has no chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json), which conversations \
         need: pass one with --chat_template_path, or use the tokenizer of a chat model", dir.display()
    )]
    Missing {
        /// The model's folder.
        dir: PathBuf,
    },
    /// Several templates, none of which is the default.
    #[error(
        "{} has the chat templates {} and none named `default`: save one of them and pass it with --chat_template_path",
        path.display(), names.join(", ")
    )]
    NoDefault {
        /// The file.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A file that cannot be read.
    #[error("cannot read the chat template {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of which the template is a part, and that is no JSON.
    #[error("{} is not valid: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A template that is no Jinja.
    #[error("the chat template of {} is broken: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        reason: String,
    },
    /// The template calls `raise_exception`.
    #[error("the chat template refuses it: {said}")]
    Refused {
        /// Its words.
        said: String,
    },
    /// The template cannot be applied.
    #[error("the chat template fails: {reason}")]
    Render {
        /// What is wrong, and in which line.
        reason: String,
    },
    /// A conversation that would take minutes.
    #[error(
        "the conversation has so many messages that it takes too long to tell which tokens are the assistant's: use a \
         template with {{% generation %}} blocks, or train on whole conversations (--assistant_only_loss false)"
    )]
    TooManyMessages,
    /// Something that is no conversation.
    #[error("{problem}")]
    Conversation {
        /// What is wrong.
        problem: String,
    },
    /// A text from which one cannot tell who wrote what.
    #[error(
        "the chat template writes message {message} differently once others follow it, so it cannot be told which tokens \
         are the assistant's: use a template with {{% generation %}} blocks, or train on whole conversations \
         (--assistant_only_loss false)"
    )]
    Rewritten {
        /// The message, from 1.
        message: usize,
    },
}
