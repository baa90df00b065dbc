//! Conversations as a model's chat template writes them down, and which part of that is trained.
//!
//! ```text
//! found        model folder -> the template's text      chat_template.jinja, or tokenizer_config.json
//! template     template + conversation -> text          Jinja2, as transformers sets it up
//! python       what differs between Jinja2 and minijinja
//! size         how large the parts of a template may be
//! program      a compiled template, in which operators ask first what they may take
//! weight       what a walk through a value takes of a template's fuel
//! fuel         filters and tests that ask the same
//! constants    what would be large before a template runs
//! deep         a stack for what recurses as deep as a template says
//! spans        text -> the characters that are trained  `{% generation %}` blocks, or prefixes
//! ```

mod constants;
mod deep;
mod error;
mod found;
mod fuel;
mod program;
mod python;
mod size;
mod spans;
mod template;
mod weight;

pub use error::ChatError;
pub use template::{ChatTemplate, Conversation};

pub(crate) use deep::with_deep_stack;
pub(crate) use spans::{Marked, assistant_spans, completion_span, whole_text};
