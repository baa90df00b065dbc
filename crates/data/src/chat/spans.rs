//! Which characters of a rendered conversation are trained.

use std::ops::Range;

use minijinja::value::Value;

use super::error::ChatError;
use super::template::{CONVERSATION_FUEL, ChatTemplate, Conversation, GENERATED};

/// A text, and the parts of it (in characters) that are trained.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Marked {
    pub(crate) text: String,
    pub(crate) spans: Vec<Range<usize>>,
}

impl Marked {
    /// A text that begins with `prefix`, of which the rest is trained.
    pub(crate) fn behind(prefix: &str, text: String) -> Self {
        let start = prefix.chars().count();
        let span = start..text.chars().count();
        let spans = std::iter::once(span).collect();
        Self { text, spans }
    }
}

/// The text of a whole conversation.
pub(crate) fn whole_text(
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<String, ChatError> {
    let count = conversation.messages.len();
    Ok(unmarked(template, template.render(conversation, count, false)?).text)
}

/// The whole conversation, and what the assistant says in it: what the template marks as generated; where it marks nothing,
/// what a message of the assistant adds to the text of those before it with the beginning of an answer. So the header of
/// an answer is not trained, and all that the template closes it with is.
pub(crate) fn assistant_spans(
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<Marked, ChatError> {
    let count = conversation.messages.len();
    let whole = unmarked(template, template.render(conversation, count, false)?);
    if template.marks_generation() {
        return Ok(whole);
    }
    let text = whole.text;
    let mut spans = Vec::new();
    let mut fuel = CONVERSATION_FUEL;
    for (index, message) in conversation.messages.iter().enumerate() {
        if message
            .get_attr("role")
            .ok()
            .as_ref()
            .and_then(Value::as_str)
            != Some("assistant")
        {
            continue;
        }
        let before = template.render_with(conversation, index, true, &mut fuel)?;
        let after = template.render_with(conversation, index + 1, false, &mut fuel)?;
        if !after.starts_with(&before) || !text.starts_with(&after) {
            return Err(ChatError::Rewritten { message: index + 1 });
        }
        let start = before.chars().count();
        spans.push(start..start + after[before.len()..].chars().count());
    }
    Ok(Marked { text, spans })
}

/// A prompt and its completion, both lists of messages, and what the completion adds.
pub(crate) fn completion_span(
    template: &ChatTemplate,
    conversation: &Conversation,
    prompt_messages: usize,
) -> Result<Marked, ChatError> {
    let count = conversation.messages.len();
    let text = unmarked(template, template.render(conversation, count, false)?).text;
    let before = unmarked(
        template,
        template.render(conversation, prompt_messages, true)?,
    )
    .text;
    if !text.starts_with(&before) {
        return Err(ChatError::Rewritten {
            message: prompt_messages,
        });
    }
    Ok(Marked::behind(&before, text))
}

/// Takes the marks of generated text out, if the template makes any.
fn unmarked(template: &ChatTemplate, rendered: String) -> Marked {
    if !template.marks_generation() {
        let spans = Vec::new();
        return Marked {
            text: rendered,
            spans,
        };
    }
    let [begin, end] = GENERATED;
    let mut marked = Marked {
        text: String::with_capacity(rendered.len()),
        spans: Vec::new(),
    };
    let (mut at, mut start) = (0, None);
    for c in rendered.chars() {
        if c == begin {
            start = Some(at);
        } else if c == end {
            marked.spans.extend(start.take().map(|start| start..at));
        } else {
            marked.text.push(c);
            at += 1;
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_of_very_many_messages_is_refused() {
        let one = r#"{"role": "assistant", "content": ""}"#;
        let list = format!("[{}]", vec![one; 60_000].join(","));
        let value: Value = serde_json::from_str(&list).unwrap();
        let conversation = Conversation::new(&value, Value::from(())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), "x").unwrap();
        let template = ChatTemplate::load(dir.path(), None).unwrap();
        let error = assistant_spans(&template, &conversation).unwrap_err();
        assert!(matches!(error, ChatError::TooManyMessages), "{error}");
    }
}
