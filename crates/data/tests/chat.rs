//! Chat templates, masks and pairs against what transformers and TRL make of them: `tests-data/golden/chat`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tandem_data::chat::ChatTemplate;
use tandem_data::{Encoder, ExampleKind, LossOn, Tokenizer};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The documents as they stand in the file: the order of keys must not be lost.
fn documents(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn found(encoder: &Encoder, document: &str, mask: &str) -> Value {
    match encoder.encode(document) {
        Ok(encoded) => json!({
            "input_ids": encoded.tokens,
            mask: encoded.trained.iter().map(|is| u8::from(*is)).collect::<Vec<_>>(),
        }),
        Err(error) => {
            let message = error.to_string();
            assert!(error.is_refusal() && message.len() > 20, "{message}");
            json!({"error": true})
        }
    }
}

/// The tokenizer of SmolLM2-135M-Instruct, which is kept packed.
fn smollm2() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let unpack = || {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(root().join("tokenizers/smollm2")).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            match name.strip_suffix(".zst") {
                Some(name) => {
                    let bytes = zstd::decode_all(bytes.as_slice()).unwrap();
                    fs::write(folder.path().join(name), bytes).unwrap();
                }
                None => fs::write(folder.path().join(name), bytes).unwrap(),
            }
        }
        folder
    };
    FOLDER.get_or_init(unpack).path()
}

/// Folders of tokenizers, and the names that the golden files have for them.
fn tokenizers() -> Vec<(String, PathBuf)> {
    let mut all = vec![("smollm2".to_owned(), smollm2().to_owned())];
    if let Some(more) = std::env::var_os("TANDEM_TEST_TOKENIZERS") {
        for entry in fs::read_dir(more).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            all.push((name, path));
        }
    }
    all
}

#[test]
fn conversations_are_the_golden_ones() {
    let golden = root().join("golden/chat");
    let mut compared = 0;
    for (tokenizer, dir) in tokenizers() {
        for template in ["chatml", "chatml_generation", "gemma", "llama3", "own"] {
            let expected = golden.join(format!("expected.{tokenizer}.{template}.jsonl"));
            if !expected.is_file() {
                assert_eq!((&*tokenizer, template), ("qwen2", "own"));
                continue;
            }
            let file = golden.join(format!("templates/{template}.jinja"));
            let file = (template != "own").then_some(file.as_path());
            let load = |assistant_only| {
                Encoder::new(
                    Tokenizer::load(&dir).unwrap(),
                    ExampleKind::Messages,
                    Some(ChatTemplate::load(&dir, file).unwrap()),
                    LossOn {
                        assistant_only,
                        ..LossOn::default()
                    },
                )
            };
            let (masked, whole) = (load(true), load(false));
            let conversations = documents(&golden.join("conversations.jsonl"));
            for expected in lines(&expected) {
                let id = &expected["id"];
                let what = format!("{tokenizer} {template} {id}");
                let document = conversations
                    .iter()
                    .find(|line| serde_json::from_str::<Value>(line).unwrap()["id"] == *id)
                    .unwrap();
                let found = found(&masked, document, "assistant_mask");
                for key in ["error", "input_ids", "assistant_mask"] {
                    assert_eq!(found[key], expected[key], "{what}: {key}");
                }
                if expected["error"].is_null() {
                    let whole = whole.encode(document).unwrap();
                    assert_eq!(json!(whole.tokens), expected["input_ids"], "{what}");
                    assert!(whole.trained.iter().all(|is| *is));
                }
                compared += 1;
            }
        }
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn pairs_are_the_golden_ones() {
    let golden = root().join("golden/chat");
    for (tokenizer, dir) in tokenizers() {
        let encoder = |completion_only| {
            Encoder::new(
                Tokenizer::load(&dir).unwrap(),
                ExampleKind::PromptCompletion,
                None,
                LossOn {
                    completion_only,
                    ..LossOn::default()
                },
            )
        };
        let (masked, whole) = (encoder(true), encoder(false));
        let pairs = documents(&golden.join("pairs.jsonl"));
        let expected = lines(&golden.join(format!("expected_pairs.{tokenizer}.jsonl")));
        assert_eq!(pairs.len(), expected.len());
        for (pair, expected) in pairs.iter().zip(expected) {
            let found = found(&masked, pair, "completion_mask");
            for key in ["input_ids", "completion_mask"] {
                assert_eq!(
                    found[key], expected[key],
                    "{tokenizer} {}: {key}",
                    expected["id"]
                );
            }
            let whole = whole.encode(pair).unwrap();
            assert!(whole.trained.iter().all(|is| *is));
        }
    }
}

#[test]
fn rows_of_another_shape_are_told() {
    let dir = smollm2();
    let encoder = |kind| {
        let tokenizer = Tokenizer::load(dir).unwrap();
        let template = ChatTemplate::load(dir, None).unwrap();
        Encoder::new(tokenizer, kind, Some(template), LossOn::default())
    };
    let conversations = encoder(ExampleKind::Messages);
    let pairs = encoder(ExampleKind::PromptCompletion);
    let cases = [
        (
            &conversations,
            r#"{"messages": 3}"#,
            "the messages are number, not a list",
        ),
        (&conversations, r#"{"messages": []}"#, "there is no message"),
        (
            &conversations,
            r#"{"messages": [{"role": "user"}]}"#,
            "message 1: it has no content",
        ),
        (
            &conversations,
            r#"{"messages": [{"content": "x"}]}"#,
            "message 1: it has neither `role`",
        ),
        (
            &conversations,
            r#"{"messages": [{"role": 1, "content": "x"}]}"#,
            "role is number",
        ),
        (&conversations, "3", "no object with the expected columns"),
        (
            &pairs,
            r#"{"prompt": "x"}"#,
            "both must be text, or both lists",
        ),
        (
            &pairs,
            r#"{"prompt": [{"role": "user", "content": "x"}], "completion": "y"}"#,
            "both must be",
        ),
    ];
    for (encoder, document, expected) in cases {
        let message = encoder.encode(document).unwrap_err().to_string();
        assert!(message.contains(expected), "{document}: {message}");
    }
    // A pair of messages is as TRL has it: the completion's turns are trained, with the header not.
    let pair = r#"{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yo"}]}"#;
    let pair = pairs.encode(pair).unwrap();
    let whole = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}"#;
    assert_eq!(pair.tokens, conversations.encode(whole).unwrap().tokens);
    let trained = pair.trained.iter().filter(|is| **is).count();
    assert!(trained > 1 && trained < pair.tokens.len() / 2, "{trained}");
}
