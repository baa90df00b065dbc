//! A chat template, set up as transformers does: Jinja2 with `trim_blocks` and `lstrip_blocks`, loop controls, Python's
//! methods, `tojson`, `raise_exception`, `strftime_now` and `{% generation %}`.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde::Deserialize;

use super::deep::with_deep_stack;
use super::error::ChatError;
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
    special_tokens: Vec<(String, String)>,
    marks_generation: bool,
    with_tools: bool,
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

        let mut environment = environment();
        let with_tools = found.with_tools.is_some();
        let (default, mut marks_generation) = with_marks(&found.default);
        let mut add = |name: &'static str, text: String| {
            let added = environment.add_template_owned(name, text);
            added.map_err(|error| ChatError::Syntax {
                path: found.path.clone(),
                reason: described(&error),
            })
        };
        add("default", default)?;
        if let Some(text) = &found.with_tools {
            let (text, marks) = with_marks(text);
            marks_generation &= marks;
            add("tool_use", text)?;
        }
        Ok(Self {
            environment,
            special_tokens,
            marks_generation,
            with_tools,
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
        let has_tools = self.with_tools && conversation.tools.is_true();
        let name = if has_tools { "tool_use" } else { "default" };
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
        let template = self.environment.get_template(name);
        let rendered = template.and_then(|template| template.render_captured(context));
        let rendered = rendered.map_err(|error| failure(&error))?;
        let levels = rendered.state().fuel_levels();
        // The list of messages is made for every text.
        let used = levels.map_or(0, |(used, _)| used) + count as u64;
        *fuel = fuel.checked_sub(used).ok_or(ChatError::TooManyMessages)?;
        Ok(rendered.into_output())
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    match syntax.build() {
        Ok(syntax) => environment.set_syntax(syntax),
        // Only delimiters can be wrong, and these are the usual ones.
        Err(error) => unreachable!("{error}"),
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    fuel::watch(&mut environment);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("trim", python::trim);
    environment.add_filter("generation", |inside: String| {
        let [begin, end] = GENERATED;
        format!("{begin}{inside}{end}")
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", python::strftime_now);
    environment
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
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_keep_the_white_space_around_them() {
        let (text, has) =
            with_marks("a{%- generation -%}b{% endgeneration %}{% if x %}{% endif %}");
        assert!(has);
        assert_eq!(
            text,
            "a{%- filter generation -%}b{%  endfilter  %}{% if x %}{% endif %}"
                .replace("{%- filter generation -%}", "{%-  filter generation  -%}")
        );
        assert!(!with_marks("{% if add_generation_prompt %}").1);
    }

    fn hi() -> Conversation {
        let value: Value = serde_json::from_str(r#"[{"role": "user", "content": "hi"}]"#).unwrap();
        Conversation::new(&value, Value::from(())).unwrap()
    }

    /// What comes of a template.
    fn rendered(text: &str) -> Result<String, ChatError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), text).unwrap();
        let template = ChatTemplate::load(dir.path(), None)?;
        with_deep_stack(|| template.render(&hi(), 1, false))
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        for text in [
            "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% include 'default' %}",
            "{% extends 'default' %}",
            "{% import 'default' as again %}",
            "{{ 'x' * 99999999999 }}",
            "{{ range(99999999999) }}",
            "{{ 10 ** 10 ** 10 }}",
            "{{ '%9999999999d' | format(1) }}",
            "{{ '{:>9999999999}'.format(1) }}",
            "{{ strftime_now('%200Y' * 1000000) }}",
            "{{ 'y'.replace('', 'x' * 1000000) * 1000000 }}",
            // A list may name one text as often as it likes.
            "{{ ','.join(['x' * 1000000] * 100000) }}",
            "{{ (['x' * 1000000] * 100000) | join }}",
            "{{ (['x' * 1000000] * 100000) | trim }}",
            "{{ (['x' * 1000000] * 100000) | tojson }}",
            "{{ (['x' * 1000000] * 100000) | string }}",
            "{{ (['x' * 1000000] * 100000) | upper }}",
            "{{ ['x' * 1000000] * 100000 }}",
            "{{ range(99999) | list | tojson(separators=('x' * 1000000, ':')) }}",
            "{% set s = 'x' * 1000000 %}{{ ([s] * 100000).count(s ~ '') }}",
            "{% set s = 'x' * 1000000 %}{{ s.startswith([s ~ 'x'] * 100000) }}",
        ] {
            println!("{text:.70}");
            let begin = std::time::Instant::now();
            let error = rendered(text).expect_err(text);
            assert!(matches!(error, ChatError::Render { .. }), "{text}: {error}");
            let took = begin.elapsed().as_secs();
            assert!(took < 20, "{took} s: {text}");
        }
    }

    /// Each of these takes a stack that grows with its length.
    #[test]
    fn a_template_that_is_deep_does_not_end_the_process() {
        let repeated = |count: usize, begin: &str, middle: &str, end: &str| {
            let many = middle.repeat(count);
            format!("{begin}{many}{end}")
        };
        let nested = "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
        let many = [900, 50_000].map(|count| {
            [
                repeated(count, "{{ ", "(", " }}"),
                repeated(count, "{{ ", "[", " }}"),
                repeated(count, "{{ ", "-", "1 }}"),
                repeated(count, "{{ ", "not ", "1 }}"),
                repeated(count, "{{ 1", "+1", " }}"),
                repeated(count, "{{ 1", "**1", " }}"),
                repeated(count, "{{ 1", "~1", " }}"),
                repeated(count, "{{ 1", " and 1", " }}"),
                repeated(count, "{{ 1", " if 1 else 1", " }}"),
                repeated(count, "{{ x", "|trim", " }}"),
                repeated(count, "{{ x", ".a", " }}"),
                repeated(count, "{{ x", "[0]", " }}"),
                repeated(count, "{{ x", "()", " }}"),
                repeated(count, "", "{% if x %}", ""),
                repeated(count, "{% if x %}", "{% elif x %}", "{% endif %}"),
                repeated(count, "", "{% for x in messages %}", ""),
            ]
        });
        let values = [
            format!("{nested}{{{{ ns.x }}}}"),
            format!("{nested}{{{{ ns.x | tojson }}}}"),
            format!("{nested}{{{{ ns.x == [ns.x] }}}}"),
            format!("{nested}{{{{ ns.x | string }}}}"),
            format!("{nested}{{{{ ns.x | tojson(sort_keys=true) }}}}"),
        ];
        for text in many.into_iter().flatten().chain(values) {
            println!("{text:.50} ... {} bytes", text.len());
            // It may be refused, or be nothing bad.
            if let Err(error) = rendered(&text) {
                let said = error.to_string();
                assert!(said.len() < 2000, "{} bytes of words", said.len());
            }
        }
    }

    #[test]
    fn a_conversation_of_very_many_messages_is_refused() {
        let one = r#"{"role": "assistant", "content": ""}"#;
        let list = format!("[{}]", vec![one; 60_000].join(","));
        let value: Value = serde_json::from_str(&list).unwrap();
        let conversation = Conversation::new(&value, Value::from(())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), "x").unwrap();
        let template = ChatTemplate::load(dir.path(), None).unwrap();
        let error = super::super::assistant_spans(&template, &conversation).unwrap_err();
        assert!(matches!(error, ChatError::TooManyMessages), "{error}");
    }

    #[test]
    fn the_words_of_a_template_are_passed_on_up_to_a_length() {
        let error = rendered("{{ raise_exception('no ' * 100000) }}").unwrap_err();
        assert!(matches!(&error, ChatError::Refused { said } if said.starts_with("no no")));
        assert!(error.to_string().len() < 2000);
    }

    #[test]
    fn a_share_gpt_message_gets_the_usual_names() {
        let value: Value = serde_json::from_str(r#"[{"from": "gpt", "value": "hi"}]"#).unwrap();
        let conversation = Conversation::new(&value, Value::from(())).unwrap();
        let message = &conversation.messages[0];
        assert_eq!(
            message.get_attr("role").unwrap().as_str(),
            Some("assistant")
        );
        assert_eq!(message.get_attr("content").unwrap().as_str(), Some("hi"));
    }
}
