//! Golden models as folders that the entry points can train: with a tokenizer of single bytes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::demo::demo;

/// A folder with model and data.
pub struct Tiny {
    folder: tempfile::TempDir,
}

/// The golden case `name`.
pub fn golden(name: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/golden");
    all.join(name)
}

impl Tiny {
    /// The golden case `name`, with its weights.
    pub fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let golden = golden(name);
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden.join(file), model.join(file)).unwrap();
        }
        fs::write(model.join("tokenizer.json"), tokenizer().to_string()).unwrap();
        fs::write(
            model.join("tokenizer_config.json"),
            json!({"eos_token": END}).to_string(),
        )
        .unwrap();
        let text = fs::read_to_string(Path::new(&demo("data")).join("kjv.txt")).unwrap();
        let data = folder.path().join("data.txt");
        fs::write(data, text.chars().take(6000).collect::<String>()).unwrap();
        Self { folder }
    }

    pub fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data.txt")
    }

    /// The flags that choose it.
    pub fn args(&self) -> [String; 12] {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        [
            "--model_name".into(),
            text(self.model()),
            "--dataset_name".into(),
            text(self.data()),
            "--init".into(),
            "pretrained".into(),
            "--seq_length".into(),
            "32".into(),
            "--dataset_percentage".into(),
            "100".into(),
            "--dtype".into(),
            "fp32".into(),
        ]
    }
}

const END: &str = "<|endoftext|>";

/// Every printable byte is a token.
fn tokenizer() -> Value {
    let mut vocab: Map<String, Value> = (33u8..=126)
        .enumerate()
        .map(|(id, byte)| (char::from(byte).to_string(), Value::from(id)))
        .collect();
    // The byte-level alphabet's names of space and line feed.
    vocab.insert("\u{120}".into(), vocab.len().into());
    vocab.insert("\u{10a}".into(), vocab.len().into());
    let end = vocab.len();
    vocab.insert(END.into(), end.into());
    json!({
        "version": "1.0",
        "added_tokens": [{
            "id": end, "content": END, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
        }],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []
        }
    })
}
