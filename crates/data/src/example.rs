//! What a row of a dataset is: text, a conversation, or a prompt with its completion; and the tokens it becomes, each with
//! whether it is trained. Names and meanings are those of TRL's `SFTConfig`.

use minijinja::value::{Value, ValueKind};
use serde::Deserialize;
use thiserror::Error;

use crate::chat::{
    ChatError, ChatTemplate, Conversation, Marked, assistant_spans, completion_span, whole_text,
    with_deep_stack,
};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// What the rows of a dataset are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExampleKind {
    /// A column of text.
    Text,
    /// `messages`: a list of `{role, content}`; or `conversations`: a list of `{from, value}`. With `tools`, where there is
    /// such a column.
    Messages,
    /// `prompt` and `completion`, both text or both lists of messages.
    PromptCompletion,
}

impl ExampleKind {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Messages => "messages",
            Self::PromptCompletion => "prompt_completion",
        }
    }

    /// What rows with these columns are, if nobody says it.
    pub(crate) fn of_columns<'a>(columns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut has = [false; 3];
        for column in columns {
            match column {
                "messages" | "conversations" => has[0] = true,
                "prompt" => has[1] = true,
                "completion" => has[2] = true,
                _ => {}
            }
        }
        match has {
            [true, ..] => Self::Messages,
            [false, true, true] => Self::PromptCompletion,
            _ => Self::Text,
        }
    }

    /// The columns that are read, of those that a file may have.
    pub(crate) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Text => &[],
            Self::Messages => &["messages", "conversations", "tools"],
            Self::PromptCompletion => &["prompt", "completion", "tools"],
        }
    }
}

/// Which tokens of an example are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossOn {
    /// Of a prompt and its completion, the completion alone.
    pub completion_only: bool,
    /// Of a conversation, what the assistant says alone.
    pub assistant_only: bool,
}

impl Default for LossOn {
    fn default() -> Self {
        Self {
            completion_only: true,
            assistant_only: false,
        }
    }
}

/// An example as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// For each, whether it is a target.
    pub trained: Vec<bool>,
}

/// Why an example has no tokens.
#[derive(Debug, Error)]
pub enum ExampleError {
    /// Something that is no conversation, or that the template refuses.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// Text that the tokenizer refuses.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A row that is not of its kind.
    #[error("{problem}")]
    Row {
        /// What is wrong.
        problem: String,
    },
}

impl ExampleError {
    /// Whether this row only cannot be used, and those of another shape can: a template refuses what it does not know.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Chat(
                ChatError::Refused { .. }
                    | ChatError::Render { .. }
                    | ChatError::Rewritten { .. }
                    | ChatError::TooManyMessages
            )
        )
    }
}

/// Turns examples into tokens.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    kind: ExampleKind,
    template: Option<ChatTemplate>,
    loss_on: LossOn,
}

/// A row of a dataset of conversations or pairs.
#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    messages: Value,
    #[serde(default)]
    conversations: Value,
    #[serde(default)]
    prompt: Value,
    #[serde(default)]
    completion: Value,
    #[serde(default)]
    tools: Value,
}

/// What such a row may have: millions of tokens. As values it takes up to thirty times as much.
const MAX_ROW_BYTES: usize = 32 << 20;

impl Encoder {
    /// For examples of this kind. `template` is asked for only where there are messages.
    pub fn new(
        tokenizer: Tokenizer,
        kind: ExampleKind,
        template: Option<ChatTemplate>,
        loss_on: LossOn,
    ) -> Self {
        Self {
            tokenizer,
            kind,
            template,
            loss_on,
        }
    }

    /// For text.
    pub fn of_text(tokenizer: Tokenizer) -> Self {
        Self::new(tokenizer, ExampleKind::Text, None, LossOn::default())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What it takes.
    pub fn kind(&self) -> ExampleKind {
        self.kind
    }

    /// Whether documents end by themselves: with what the template closes a conversation with, or with the EOS of a pair.
    pub fn ends_documents(&self) -> bool {
        self.kind != ExampleKind::Text || self.tokenizer.appends_eos()
    }

    /// Encoders with equal fingerprints give equal tokens.
    pub fn fingerprint(&self) -> blake3::Hash {
        let tokenizer = *self.tokenizer.fingerprint();
        if self.kind == ExampleKind::Text {
            return tokenizer;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(tokenizer.as_bytes());
        hasher.update(format!("{} {:?}", self.kind.name(), self.loss_on).as_bytes());
        if let Some(template) = &self.template {
            hasher.update(template.fingerprint().as_bytes());
        }
        hasher.finalize()
    }

    /// The tokens of a document as [`crate::Documents`] gives it: text, or an object of JSON.
    ///
    /// # Errors
    /// A row that is not of the kind; a conversation that the template refuses; no template.
    pub fn encode(&self, document: &str) -> Result<Encoded, ExampleError> {
        if self.kind == ExampleKind::Text {
            let tokens = self.tokenizer.encode(document)?;
            let trained = vec![true; tokens.len()];
            return Ok(Encoded { tokens, trained });
        }
        if document.len() > MAX_ROW_BYTES {
            return Err(ExampleError::Row {
                problem: format!(
                    "it has {} bytes, and a conversation or a pair may have {} MiB",
                    document.len(),
                    MAX_ROW_BYTES >> 20
                ),
            });
        }
        let row: Row = serde_json::from_str(document).map_err(|error| ExampleError::Row {
            problem: format!("it is no object with the expected columns: {error}"),
        })?;
        let (marked, is_masked) = match self.kind {
            ExampleKind::PromptCompletion => {
                let pair = with_deep_stack(|| self.pair(&row));
                (pair?, self.loss_on.completion_only)
            }
            _ => with_deep_stack(|| self.conversation(&row))?,
        };
        self.tokens(&marked, is_masked)
    }

    /// The tokens of a text. Trained are those with at least one character of what is trained, or all.
    fn tokens(&self, marked: &Marked, is_masked: bool) -> Result<Encoded, ExampleError> {
        if !is_masked {
            let tokens = self.tokenizer.encode_plain(&marked.text)?;
            let trained = vec![true; tokens.len()];
            return Ok(Encoded { tokens, trained });
        }
        let (tokens, places) = self.tokenizer.encode_with_offsets(&marked.text)?;
        let is_trained = |(start, end): (usize, usize)| {
            let mut spans = marked.spans.iter();
            spans.any(|span| start < span.end && span.start < end)
        };
        Ok(Encoded {
            tokens,
            trained: places.into_iter().map(is_trained).collect(),
        })
    }

    fn conversation(&self, row: &Row) -> Result<(Marked, bool), ExampleError> {
        let messages = match row.messages.is_undefined() || row.messages.is_none() {
            true => &row.conversations,
            false => &row.messages,
        };
        let conversation = Conversation::new(messages, tools(&row.tools)?)?;
        let template = self.template()?;
        if self.loss_on.assistant_only {
            return Ok((assistant_spans(template, &conversation)?, true));
        }
        let text = whole_text(template, &conversation)?;
        let spans = Vec::new();
        Ok((Marked { text, spans }, false))
    }

    fn pair(&self, row: &Row) -> Result<Marked, ExampleError> {
        match (row.prompt.as_str(), row.completion.as_str()) {
            (Some(prompt), Some(completion)) => Ok(self.plain_pair(prompt, completion)),
            (None, None) if row.prompt.kind() == ValueKind::Seq => {
                let tools = tools(&row.tools)?;
                let prompt = Conversation::new(&row.prompt, tools.clone())?;
                let completion = Conversation::new(&row.completion, tools.clone())?;
                let count = prompt.messages.len();
                let messages = [prompt.messages, completion.messages].concat();
                let whole = Conversation { messages, tools };
                Ok(completion_span(self.template()?, &whole, count)?)
            }
            _ => Err(ExampleError::Row {
                problem: format!(
                    "prompt is {} and completion {}: both must be text, or both lists of messages",
                    row.prompt.kind(),
                    row.completion.kind()
                ),
            }),
        }
    }

    fn plain_pair(&self, prompt: &str, completion: &str) -> Marked {
        let eos = self.tokenizer.eos_token();
        let end = if completion.ends_with(eos) { "" } else { eos };
        Marked::behind(prompt, [prompt, completion, end].concat())
    }

    fn template(&self) -> Result<&ChatTemplate, ExampleError> {
        self.template.as_ref().ok_or_else(|| ExampleError::Row {
            problem: "it has messages, and there is no chat template".into(),
        })
    }
}

/// Tools as a list; some datasets have it as JSON in a text.
fn tools(value: &Value) -> Result<Value, ExampleError> {
    match value.as_str() {
        Some("") => Ok(Value::from(())),
        Some(text) => serde_json::from_str(text).map_err(|error| ExampleError::Row {
            problem: format!("its tools are text that is no JSON: {error}"),
        }),
        None if value.is_undefined() => Ok(Value::from(())),
        None => Ok(value.clone()),
    }
}
