//! Conversations as a model's chat template writes them down, and which part of that is trained.
//!
//! ```text
//! found        model folder -> the template's text      chat_template.jinja, or tokenizer_config.json
//! template     template + conversation -> text          Jinja2, as transformers sets it up
//! python       what differs between Jinja2 and minijinja
//! spans        text -> the characters that are trained  `{% generation %}` blocks, or prefixes
//! ```

mod error;
mod found;
mod python;
mod spans;
mod template;

pub use error::ChatError;
pub use template::{ChatTemplate, Conversation};

pub(crate) use spans::{Marked, assistant_spans, completion_span, whole_text};
