//! Conversations and pairs: what is trained of them, what is refused, and what `tandem data preview` shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::demo::{Run, losses, train};
use crate::tiny::Tiny;

/// A template, rows, flags, and words of the refusal.
type Case<'a> = (Option<&'a str>, Vec<Value>, &'a [&'a str], &'a [&'a str]);

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

const CAREFUL: &str = "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}\
                       {{ raise_exception('what is a ' + m.role + '?') }}{% endif %}{{ m.content }}\n{% endfor %}";

/// A folder with a tiny model and these rows.
struct Chat {
    tiny: Tiny,
    data: PathBuf,
}

impl Chat {
    fn new(template: Option<&str>, rows: &[Value]) -> Self {
        let tiny = Tiny::new("qwen2_untied");
        if let Some(template) = template {
            fs::write(tiny.model().join("chat_template.jinja"), template).unwrap();
        }
        let data = tiny.model().join("../rows.jsonl");
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(&data, text).unwrap();
        Self { tiny, data }
    }

    fn run(&self, tp: usize, dp: usize) -> Run {
        Run::new("fsdp", tp, dp).args(self.tiny.args()).args([
            "--dataset_name",
            self.data.to_str().unwrap(),
            "--seq_length",
            "64",
            "--max_steps",
            "3",
        ])
    }

    fn preview(&self, extra: &[&str]) -> Output {
        let binary = Path::new(env!("CARGO_BIN_EXE_tandem"));
        let mut command = Command::new(binary);
        command.args(["data", "preview", "--seq_length", "64", "--model_name"]);
        command.arg(self.tiny.model()).arg("--dataset_name");
        command.arg(&self.data).args(extra);
        command.output().unwrap()
    }

    fn json(&self, extra: &[&str]) -> Vec<Value> {
        let output = self.preview(&[&["--json"], extra].concat());
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn says(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn conversations() -> Vec<Value> {
    (0..16)
        .map(|n| {
            let question = format!("{n}+1?");
            json!({"messages": [says("user", &question), says("assistant", &(n + 1).to_string())]})
        })
        .collect()
}

fn refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn the_same_conversations_give_the_same_losses_on_every_mesh() {
    let chat = Chat::new(Some(TEMPLATE), &conversations());
    let trained = |tp, dp, batch: &str, extra: &[&str]| {
        let run = chat.run(tp, dp).args(["--batch_size", batch]).args(extra);
        losses(&run.succeed())
    };
    let one = trained(1, 1, "4", &["--assistant_only_loss"]);
    for (tp, dp, batch) in [(2, 1, "4"), (1, 2, "2"), (2, 2, "2")] {
        let other = trained(tp, dp, batch, &["--assistant_only_loss"]);
        for (a, b) in one.iter().zip(&other) {
            assert!((a - b).abs() < 2e-5, "{tp} x {dp}: {one:?} {other:?}");
        }
    }
    let whole = trained(1, 1, "4", &[]);
    assert!((whole[0] - one[0]).abs() > 1e-3, "{whole:?} {one:?}");
}

#[test]
fn a_preview_shows_what_is_trained() {
    let mut rows = conversations();
    rows[1] = json!({"messages": [says("ghost", "boo"), says("assistant", "x")]});
    let chat = Chat::new(Some(CAREFUL), &rows);
    let documents = chat.json(&["--documents", "--assistant_only_loss"]);
    assert_eq!(documents.len(), 16);
    assert!(
        documents[1]["error"]
            .as_str()
            .unwrap()
            .contains("what is a ghost?"),
        "{}",
        documents[1]
    );
    // "0+1?\n1\n": the answer and the line end that closes it.
    let ids: Vec<i64> = serde_json::from_value(documents[0]["input_ids"].clone()).unwrap();
    let labels: Vec<i64> = serde_json::from_value(documents[0]["labels"].clone()).unwrap();
    assert_eq!(ids.len(), 7);
    assert_eq!(labels[..5], [-100; 5]);
    assert_eq!(labels[5..], ids[5..]);

    let shown = chat.json(&["--rows", "2", "--assistant_only_loss"]);
    assert_eq!(shown.len(), 2);
    assert_eq!(shown[0]["input_ids"].as_array().unwrap().len(), 64);
    assert_eq!(shown[0]["labels"][5], ids[5]);
    assert_eq!(shown[0]["position_ids"][6], 6);
    assert_eq!(shown[0]["document_ids"][6], 0);
    assert_eq!(shown[0]["document_ids"][7], -1);

    let text = chat.preview(&["--assistant_only_loss"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("0+1?\n⟦1\n⟧"), "{text}");
    assert!(text.contains("15 rows of 64 tokens"), "{text}");

    // The refused row is left out of training, and said.
    let run = chat.run(1, 1);
    let output = train(&run).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.contains("1 of 16 rows of the dataset, which the chat template refuses"),
        "{output}"
    );
    assert!(
        output.contains("15 conversations, loss on all tokens, one a row"),
        "{output}"
    );
}

#[test]
fn what_is_no_conversation_or_no_template_is_said() {
    let good = conversations();
    let cases: [Case<'_>; 8] = [
        (
            None,
            good.clone(),
            &[],
            &["no chat template", "--chat_template_path"],
        ),
        (
            Some("{% for %}"),
            good.clone(),
            &[],
            &["chat template", "broken", "line 1"],
        ),
        (
            Some(CAREFUL),
            vec![json!({"messages": [says("ghost", "boo")]})],
            &[],
            &["none of its 1", "what is a ghost?"],
        ),
        (
            Some(TEMPLATE),
            vec![json!({"messages": [{"role": "user"}]})],
            &[],
            &["row 1", "message 1", "no content"],
        ),
        (
            Some(TEMPLATE),
            vec![json!({"messages": [says("user", "hi")]})],
            &["--assistant_only_loss"],
            &["is anything trained"],
        ),
        (
            Some(TEMPLATE),
            good.clone(),
            &["--dataset_format", "prompt_completion"],
            &["prompt or completion", "messages"],
        ),
        (
            Some(TEMPLATE),
            good.clone(),
            &["--eos_token", "<nope>"],
            &["--eos_token <nope>"],
        ),
        (
            Some(TEMPLATE),
            vec![json!({"prompt": "a", "completion": "b"})],
            &["--assistant_only_loss"],
            &["--assistant_only_loss is for"],
        ),
    ];
    for (template, rows, extra, words) in cases {
        let chat = Chat::new(template, &rows);
        refused(&chat.preview(extra), words);
        let (code, text) = chat.run(1, 1).args(extra).fail();
        assert_eq!(code, Some(2), "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    }
}

#[test]
fn pairs_train_their_completions() {
    let rows: Vec<Value> = (0..8)
        .map(|n| json!({"prompt": format!("{n}+1="), "completion": (n + 1).to_string()}))
        .collect();
    // Text on both sides needs no template.
    let chat = Chat::new(None, &rows);
    let documents = chat.json(&["--documents"]);
    let labels: Vec<i64> = serde_json::from_value(documents[0]["labels"].clone()).unwrap();
    assert_eq!(
        labels.len(),
        6,
        "four of the prompt, one of the completion, and the end"
    );
    assert_eq!(labels.iter().filter(|label| **label == -100).count(), 4);
    let only = losses(&chat.run(1, 1).succeed());
    let whole = losses(
        &chat
            .run(1, 1)
            .args(["--completion_only_loss", "false"])
            .succeed(),
    );
    assert!((only[0] - whole[0]).abs() > 1e-3, "{only:?} {whole:?}");
}
