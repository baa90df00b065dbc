//! A chat template, set up as transformers does: Jinja2 with `trim_blocks` and `lstrip_blocks`, loop controls, Python's
//! methods, `tojson`, `raise_exception`, `strftime_now` and `{% generation %}`.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, State};
use serde::Deserialize;

use super::deep::with_deep_stack;
use super::error::ChatError;
use super::program::{self, Program};
use super::weight::BYTES_OF_FUEL;
use super::{found, fuel, python};
use crate::tokenizer::read_json;

/// Encloses the words of `raise_exception` in minijinja's error.
const RAISED: char = '\u{fdd0}';

/// What stands for the borders of generated text in the output: two characters that are none, so that no text has them.
pub(super) const GENERATED: [char; 2] = ['\u{fdd1}', '\u{fdd2}'];

/// What a template may do before it is stopped: instructions, and one for every 64 bytes that it creates. That is 64 megabytes,
/// many times what a long conversation takes.
const FUEL: u64 = 1_000_000;

/// What one conversation may take that is written down once for every message.
pub(super) const CONVERSATION_FUEL: u64 = 100 * FUEL;

/// The characters of a template's own words that are passed on.
const MAX_WORDS: usize = 1000;

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    default: Program,
    /// Where there is another for conversations with tools.
    with_tools: Option<Program>,
    special_tokens: Vec<(String, String)>,
    marks_generation: bool,
    fingerprint: blake3::Hash,
}

/// What is written down.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Objects with a `role` and what the template wants beside it.
    pub messages: Vec<Value>,
    /// Descriptions of the tools that the assistant may call.
    pub tools: Value,
}

/// A message as far as it is looked at here.
#[derive(Deserialize)]
struct FromValue {
    from: String,
    #[serde(default)]
    value: Value,
}

impl Conversation {
    /// A conversation from a list of `{role, content}`, or of `{from, value}` as ShareGPT has them.
    ///
    /// # Errors
    /// Anything else.
    pub fn new(messages: &Value, tools: Value) -> Result<Self, ChatError> {
        let wrong = |problem: String| ChatError::Conversation { problem };
        let list = match messages.kind() {
            minijinja::value::ValueKind::Seq => messages.try_iter(),
            kind => return Err(wrong(format!("the messages are {kind}, not a list"))),
        };
        let list = list.map_err(|error| wrong(error.to_string()))?;
        let messages: Vec<Value> = list
            .enumerate()
            .map(|(index, message)| {
                known_names(&message)
                    .map_err(|problem| wrong(format!("message {}: {problem}", index + 1)))
            })
            .collect::<Result<_, _>>()?;
        if messages.is_empty() {
            return Err(wrong("there is no message".into()));
        }
        Ok(Self { messages, tools })
    }
}

/// The message with `role` and `content`.
fn known_names(message: &Value) -> Result<Value, String> {
    let has = |name: &str| {
        message
            .get_attr(name)
            .is_ok_and(|value| !value.is_undefined())
    };
    if has("role") {
        let role = message
            .get_attr("role")
            .map_err(|error| error.to_string())?;
        if role.as_str().is_none() {
            return Err(format!("its role is {}, not text", role.kind()));
        }
        return match has("content") || has("tool_calls") {
            true => Ok(message.clone()),
            false => Err("it has no content".into()),
        };
    }
    if !has("from") {
        return Err("it has neither `role` and `content` nor `from` and `value`".into());
    }
    let message = FromValue::deserialize(message.clone()).map_err(|error| error.to_string())?;
    if message.value.is_undefined() {
        return Err("it has no value".into());
    }
    let role = match message.from.as_str() {
        "human" => "user",
        "gpt" | "chatgpt" | "model" | "bot" => "assistant",
        "function_response" | "observation" => "tool",
        other => other,
    };
    Ok(Value::from_pairs([
        ("role", Value::from(role)),
        ("content", message.value),
    ]))
}

impl ChatTemplate {
    /// The template in `file`, or else that of the tokenizer in `dir`, whose special tokens it can name.
    ///
    /// # Errors
    /// No template, or one that is broken.
    pub fn load(dir: &Path, file: Option<&Path>) -> Result<Self, ChatError> {
        with_deep_stack(|| Self::load_here(dir, file))
    }

    fn load_here(dir: &Path, file: Option<&Path>) -> Result<Self, ChatError> {
        let found = found::find(dir, file)?;
        let special_tokens = special_tokens(dir);
        let mut fingerprint = blake3::Hasher::new();
        let texts = [Some(&found.default), found.with_tools.as_ref()];
        for text in texts.into_iter().flatten() {
            fingerprint.update(&(text.len() as u64).to_le_bytes());
            fingerprint.update(text.as_bytes());
        }
        fingerprint.update(format!("{special_tokens:?}").as_bytes());

        let compile = |name: &'static str, text: String| {
            let program = Program::new(name, text, syntax());
            program.map_err(|error| ChatError::Syntax {
                path: found.path.clone(),
                reason: described(&error),
            })
        };
        let (default, mut marks_generation) = with_marks(&found.default);
        let default = compile("default", default)?;
        let with_tools = match &found.with_tools {
            Some(text) => {
                let (text, marks) = with_marks(text);
                marks_generation &= marks;
                Some(compile("tool_use", text)?)
            }
            None => None,
        };
        Ok(Self {
            environment: environment(),
            default,
            with_tools,
            special_tokens,
            marks_generation,
            fingerprint: fingerprint.finalize(),
        })
    }

    /// Templates with equal fingerprints write the same text.
    pub fn fingerprint(&self) -> &blake3::Hash {
        &self.fingerprint
    }

    /// Whether it says itself what the assistant generates.
    pub(crate) fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// The text of the first `count` messages, with [`GENERATED`] around what the template marks. With `prompt`, the
    /// beginning of an answer follows.
    pub(super) fn render(
        &self,
        conversation: &Conversation,
        count: usize,
        prompt: bool,
    ) -> Result<String, ChatError> {
        self.render_with(conversation, count, prompt, &mut CONVERSATION_FUEL.clone())
    }

    /// As [`Self::render`], and takes from `fuel` what it has used.
    pub(super) fn render_with(
        &self,
        conversation: &Conversation,
        count: usize,
        prompt: bool,
        fuel: &mut u64,
    ) -> Result<String, ChatError> {
        let program = match &self.with_tools {
            Some(with_tools) if conversation.tools.is_true() => with_tools,
            _ => &self.default,
        };
        let special = self.special_tokens.iter();
        let context = special
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .chain([
                (
                    "messages",
                    Value::from(conversation.messages[..count].to_vec()),
                ),
                ("tools", conversation.tools.clone()),
                ("documents", Value::from(())),
                ("add_generation_prompt", Value::from(prompt)),
            ]);
        let context = Value::from_pairs(context);
        let ran = program.run(&self.environment, context);
        let (text, used) = ran.map_err(|error| failure(&error))?;
        // The list of messages is made for every text.
        let used = used + count as u64;
        *fuel = fuel.checked_sub(used).ok_or(ChatError::TooManyMessages)?;
        Ok(text)
    }
}

fn syntax() -> SyntaxConfig {
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    match syntax.build() {
        Ok(syntax) => syntax,
        // Only delimiters can be wrong, and these are the usual ones.
        Err(error) => unreachable!("{error}"),
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    fuel::watch(&mut environment);
    program::add_looks(&mut environment);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("trim", python::trim);
    environment.add_filter("generation", generation);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", python::strftime_now);
    environment
}

fn generation(state: &State, inside: &Value) -> Result<String, Error> {
    let [begin, end] = GENERATED;
    let mut text = fuel::Bounded::new(state);
    text.push(state, inside)?;
    Ok(format!("{begin}{}{end}", text.text))
}

fn raise_exception(said: &str) -> Result<Value, Error> {
    let said: String = said.chars().take(MAX_WORDS).collect();
    let said = format!("{RAISED}{said}{RAISED}");
    Err(Error::new(ErrorKind::InvalidOperation, said))
}

/// The template with its `{% generation %}` blocks as blocks of a filter, which minijinja has, where it has no tags of
/// one's own; and whether there is one. Both are block tags, so white space around them stays what it is.
fn with_marks(template: &str) -> (String, bool) {
    let (mut out, mut rest, mut has_marks) = (String::new(), template, false);
    while let Some(start) = rest.find("{%") {
        // Behind both of its characters: `{%}` is no tag.
        let Some(length) = rest[start + 2..].find("%}") else {
            break;
        };
        let end = start + 2 + length;
        let tag = &rest[start + 2..end];
        let word = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let replaced = match word {
            "generation" => Some("filter generation"),
            "endgeneration" => Some("endfilter"),
            _ => None,
        };
        out.push_str(&rest[..start + 2]);
        match replaced {
            Some(by) => {
                has_marks = true;
                out.push_str(&tag.replace(word, &format!(" {by} ")));
            }
            None => out.push_str(tag),
        }
        out.push_str("%}");
        rest = &rest[end + 2..];
    }
    out.push_str(rest);
    (out, has_marks)
}

/// The special tokens that the files of a tokenizer name, as the variables of a template.
fn special_tokens(dir: &Path) -> Vec<(String, String)> {
    const NAMES: [&str; 7] = [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
    ];
    // Whoever loads a tokenizer is told what is wrong with these files; a template can do without.
    let read = |name: &str| read_json(&dir.join(name)).unwrap_or_default();
    let files = ["tokenizer_config.json", "special_tokens_map.json"].map(read);
    let named = NAMES.iter().filter_map(|name| {
        let token = files.iter().find_map(|file| match &file[name] {
            serde_json::Value::String(token) => Some(token.clone()),
            added => added["content"].as_str().map(str::to_owned),
        });
        token.map(|token| ((*name).to_owned(), token))
    });
    named.collect()
}

/// What went wrong: the template's own words, or minijinja's with the line.
fn failure(error: &Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        let text = current.to_string();
        if let Some(said) = text.split(RAISED).nth(1) {
            return ChatError::Refused { said: said.into() };
        }
        cause = current.source();
    }
    ChatError::Render {
        reason: described(error),
    }
}

fn described(error: &Error) -> String {
    let what = match error.detail() {
        _ if error.kind() == ErrorKind::OutOfFuel => format!(
            "it takes more than {FUEL} steps, or makes more than {} MB of text",
            FUEL * BYTES_OF_FUEL / 1_000_000
        ),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

#[cfg(test)]
mod tests;
