//! Chat templates, which are programs, and what they are given.

use std::fs;
use std::path::Path;

use tandem_data::chat::ChatTemplate;
use tandem_data::{DatasetOptions, Encoder, ExampleKind, LossOn, Source, Tokenizer};
use tempfile::TempDir;

/// What a template writes down.
const ROWS: [&str; 3] = [
    r#"{"messages": [{"role": "system", "content": "a b"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c d"}]}"#,
    r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls":
        [{"type": "function", "function": {"name": "f", "arguments": {"x": [1, 2.5, {"y": null}]}}}]}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}"#,
    r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "\u00e9\ud83d\ude00"}], "tools": "[{}]"}"#,
];

fn golden(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests-data/golden/chat")
        .join(path)
}

pub mod seeds {
    use super::{ROWS, fs, golden};

    pub fn template() -> Vec<Vec<u8>> {
        let names = ["chatml", "chatml_generation", "gemma", "llama3"];
        let of_file = |name| fs::read(golden(&format!("templates/{name}.jinja"))).unwrap();
        let more = "{% macro m(x, n=1) %}{{ x | upper }}{% if n %}{{ m(x, n - 1) }}{% endif %}{% endmacro %}\
            {% set ns = namespace(s='') %}{% for k, v in messages[0].items() | sort %}{% set ns.s = ns.s ~ k %}\
            {% if loop.last %}{% break %}{% endif %}{% endfor %}{{ ns.s[1:-1:2] }}{{ messages | map(attribute='role') | join(',') }}\
            {{ m('a') }}{{ strftime_now('%d %b %Y') }}{{ messages | tojson(indent=2) }}{{ 'a,b'.split(',')[-1].rstrip() }}";
        names
            .map(of_file)
            .into_iter()
            .chain([more.as_bytes().to_vec()])
            .collect()
    }

    pub fn tokenizer_config() -> Vec<Vec<u8>> {
        [
            r#"{"eos_token": "<end>", "chat_template": "{{ eos_token }}{{ messages[0]['content'] }}"}"#,
            r#"{"eos_token": {"content": "<end>", "lstrip": false}, "pad_token": null, "model_max_length": 1e30, "chat_template":
                [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]}"#,
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    fn lines(name: &str) -> Vec<Vec<u8>> {
        let text = fs::read_to_string(golden(name)).unwrap();
        text.lines().map(|line| line.as_bytes().to_vec()).collect()
    }

    pub fn conversation() -> Vec<Vec<u8>> {
        let rows = ROWS.map(|row| row.as_bytes().to_vec());
        rows.into_iter()
            .chain(lines("conversations.jsonl"))
            .collect()
    }

    pub fn pair() -> Vec<Vec<u8>> {
        let messages = r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#;
        let mut all = lines("pairs.jsonl");
        all.push(messages.as_bytes().to_vec());
        all
    }
}

/// The folder of a tokenizer of a few words.
fn tokenizer_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let [tokenizer, config] =
        ["tokenizer.json", "tokenizer_config.json"].map(|name| folder.path().join(name));
    fs::write(tokenizer, &crate::models::seeds::tokenizer()[0]).unwrap();
    fs::write(config, r#"{"eos_token": "<end>"}"#).unwrap();
    folder
}

fn check(encoder: &Encoder, row: &str) {
    match encoder.encode(row) {
        Ok(encoded) => assert_eq!(encoded.tokens.len(), encoded.trained.len()),
        Err(error) => {
            // A template's own words are as long as it likes.
            let said = error.to_string();
            assert!(!said.is_empty(), "it is refused without a word");
        }
    }
}

/// Applies the template of a folder to some conversations, whether all of them is trained or what the assistant says.
fn apply(folder: &Path) {
    for assistant_only in [false, true] {
        let (Ok(tokenizer), Ok(template)) =
            (Tokenizer::load(folder), ChatTemplate::load(folder, None))
        else {
            return;
        };
        let loss_on = LossOn {
            assistant_only,
            ..LossOn::default()
        };
        let encoder = Encoder::new(tokenizer, ExampleKind::Messages, Some(template), loss_on);
        for row in ROWS {
            check(&encoder, row);
        }
    }
}

pub fn template(bytes: &[u8]) {
    let folder = tokenizer_folder();
    fs::write(folder.path().join("chat_template.jinja"), bytes).unwrap();
    apply(folder.path());
}

pub fn tokenizer_config(bytes: &[u8]) {
    let folder = tokenizer_folder();
    fs::write(folder.path().join("tokenizer_config.json"), bytes).unwrap();
    apply(folder.path());
}

/// Reads a file of rows, and turns each into tokens.
fn read(bytes: &[u8], kind: ExampleKind) {
    let folder = tokenizer_folder();
    let path = folder.path().join("data.jsonl");
    fs::write(&path, bytes).unwrap();
    let options = DatasetOptions {
        kind: Some(kind),
        ..DatasetOptions::new(path.to_str().unwrap())
    };
    let Ok(source) = Source::resolve(&options, &crate::data::hub(), &mut ()) else {
        return;
    };
    let template = golden("templates/chatml_generation.jinja");
    let encoder = Encoder::new(
        Tokenizer::load(folder.path()).unwrap(),
        kind,
        Some(ChatTemplate::load(folder.path(), Some(&template)).unwrap()),
        LossOn {
            completion_only: true,
            assistant_only: true,
        },
    );
    let Ok(documents) = source.documents() else {
        return;
    };
    for row in documents {
        let Ok(row) = row else { return };
        check(&encoder, &row);
    }
}

pub fn conversation(bytes: &[u8]) {
    read(bytes, ExampleKind::Messages);
}

pub fn pair(bytes: &[u8]) {
    read(bytes, ExampleKind::PromptCompletion);
}
