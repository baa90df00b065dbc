//! Conversations as a model's chat template writes them down, and which part of that is trained.
//!
//! ```text
//! found        model folder -> the template's text      chat_template.jinja, or tokenizer_config.json
//! template     template + conversation -> text          Jinja2, as transformers sets it up
//! python       what differs between Jinja2 and minijinja
//! size         how large the parts of a template may be
//! fuel         what a template may take that minijinja does not count
//! deep         a stack for what recurses as deep as a template says
//! spans        text -> the characters that are trained  `{% generation %}` blocks, or prefixes
//! ```

mod deep;
mod error;
mod found;
mod fuel;
mod python;
mod size;
mod spans;
mod template;

pub use error::ChatError;
pub use template::{ChatTemplate, Conversation};

pub(crate) use deep::with_deep_stack;
pub(crate) use spans::{Marked, assistant_spans, completion_span, whole_text};
