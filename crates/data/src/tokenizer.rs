//! The tokenizer of a Hugging Face model folder.

mod pieces;
mod template;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tandem_files::read_small;
use thiserror::Error;
use tokenizers::Tokenizer as Pipeline;
use tokenizers::tokenizer::Offsets;

use crate::limits::{JSON_BYTES, TOKENIZER_BYTES};
use crate::panics::guarded;

/// Files that name the EOS token, in the order in which they are asked.
const EOS_FILES: [&str; 4] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
];

/// What a normalizer may make of a text that is tokenized at once: the longest piece, in which every space becomes three bytes.
const MAX_NORMALIZED_BYTES: usize = 32 << 20;

/// Text to tokens, and what else training must know of a vocabulary.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pipeline: Pipeline,
    eos_id: u32,
    eos_token: String,
    pad_id: u32,
    appends_eos: bool,
    /// Special tokens before and after a text; `None` where they are not that simple.
    around: Option<(Vec<u32>, Vec<u32>)>,
    /// How many times as long as a text what is tokenized of it may be.
    growth: usize,
    vocab_size: usize,
    fingerprint: blake3::Hash,
}

/// Why a folder has no usable tokenizer.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// No `tokenizer.json`.
    #[error(
        "{} has no tokenizer.json: pass a folder or hub name with one as tokenizer \
         (a slow tokenizer is converted by `AutoTokenizer.from_pretrained(..).save_pretrained(..)`)",
        dir.display()
    )]
    Missing {
        /// The folder.
        dir: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not what its name says.
    #[error("{} is not valid: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Documents could not be told apart.
    #[error(
        "no EOS token: looked for `eos_token` or `eos_token_id` in tokenizer_config.json, special_tokens_map.json, \
         generation_config.json and config.json of {}; name one with --eos_token",
        dir.display()
    )]
    NoEos {
        /// The folder.
        dir: PathBuf,
    },
    /// A token that somebody asked for.
    #[error("--eos_token {token} is not in the vocabulary of tokenizer.json")]
    NoSuchEos {
        /// The token.
        token: String,
    },
    /// A special token outside the vocabulary.
    #[error("{} names `{token}` as {role}, which the vocabulary of tokenizer.json does not have", path.display())]
    UnknownToken {
        /// The file.
        path: PathBuf,
        /// The token.
        token: String,
        /// `eos_token` or `pad_token`.
        role: &'static str,
    },
    /// Text that would take more memory than should be needed for one document.
    #[error(
        "a document has a part of more than {limit} bytes, {beginning:?}..., that this tokenizer cannot take in pieces: \
         split the document into several"
    )]
    Uncuttable {
        /// The first characters of the part.
        beginning: String,
        /// What a part may have.
        limit: usize,
    },
    /// Text that the tokenizer does not take.
    #[error("the tokenizer refuses a document that begins with {beginning:?}: {reason}")]
    Encode {
        /// The first characters.
        beginning: String,
        /// What is wrong.
        reason: String,
    },
}

impl Tokenizer {
    /// Reads `tokenizer.json` of `dir`, and the special tokens from the JSON files beside it.
    ///
    /// Truncation and padding that the file may ask for are turned off: rows are cut and filled by the dataset.
    ///
    /// # Errors
    /// Files that are missing or not valid; no EOS token.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        Self::read(dir, None)
    }

    /// The same with another end-of-text token than its files name, if they name one.
    ///
    /// # Errors
    /// As [`Self::load`]; a token that is not in the vocabulary.
    pub fn load_with_eos(dir: &Path, token: &str) -> Result<Self, TokenizerError> {
        Self::read(dir, Some(token))?.with_eos(token)
    }

    fn read(dir: &Path, eos: Option<&str>) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(TokenizerError::Missing { dir: dir.into() });
        }
        let bytes = read_small(&path, TOKENIZER_BYTES).map_err(|source| TokenizerError::Read {
            path: path.clone(),
            source,
        })?;
        let invalid = |reason: tokenizers::Error| TokenizerError::Invalid {
            path: path.clone(),
            reason: reason.to_string(),
        };
        let growth = template::check(&bytes).map_err(|reason| TokenizerError::Invalid {
            path: path.clone(),
            reason,
        })?;
        // Some of what a file may say makes the library panic.
        let read = guarded(|| Pipeline::from_bytes(&bytes));
        let mut pipeline = read.map_err(|reason| TokenizerError::Invalid {
            path: path.clone(),
            reason,
        })?;
        pipeline.with_padding(None);
        pipeline.with_truncation(None).map_err(invalid)?;
        let vocab_size = pipeline
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |last| *last as usize + 1);

        let eos_id = match (find_eos(dir, &pipeline), eos) {
            (Err(TokenizerError::NoEos { .. }), Some(token)) => id_of_eos(&pipeline, token)?,
            (found, _) => found?,
        };
        let pad_id = special_token(dir, EOS_FILES[0], "pad_token", &pipeline)?.unwrap_or(eos_id);
        let eos_token = pipeline.id_to_token(eos_id).unwrap_or_default();
        let mut tokenizer = Self {
            pipeline,
            eos_id,
            eos_token,
            pad_id,
            appends_eos: false,
            around: None,
            growth,
            vocab_size,
            fingerprint: fingerprint(&bytes, eos_id, pad_id),
        };
        let (ended, plain) = (tokenizer.encode("a")?, tokenizer.encode_plain("a")?);
        // Special tokens have their ids from elsewhere, and a row of the embedding must be there for each.
        let special = [eos_id, pad_id].into_iter().chain(ended.iter().copied());
        if let Some(id) = special.into_iter().find(|id| *id as usize >= vocab_size) {
            return Err(TokenizerError::Invalid {
                path,
                reason: format!(
                    "a special token has the id {id}, and the vocabulary ends before {vocab_size}"
                ),
            });
        }
        tokenizer.appends_eos = ended.last() == Some(&eos_id);
        tokenizer.around = around(&ended, &plain);
        Ok(tokenizer)
    }

    /// The same with another token that ends documents.
    ///
    /// # Errors
    /// One that is not in the vocabulary.
    fn with_eos(mut self, token: &str) -> Result<Self, TokenizerError> {
        let id = id_of_eos(&self.pipeline, token)?;
        if self.pad_id == self.eos_id {
            self.pad_id = id;
        }
        (self.eos_id, self.eos_token) = (id, token.into());
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.fingerprint.as_bytes());
        hasher.update(&id.to_le_bytes());
        self.fingerprint = hasher.finalize();
        self.appends_eos = self.encode("a")?.last() == Some(&id);
        Ok(self)
    }

    /// The tokens of one document, with the special tokens that the tokenizer itself puts around a text (for example
    /// Llama's BOS). A long one is taken in pieces, for the memory's sake, with the same tokens as a result.
    ///
    /// # Errors
    /// Text that the tokenizer refuses; a text of many megabytes that can be cut nowhere.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let sizes = pieces::Sizes::default();
        match &self.around {
            Some((before, after)) if text.len() > sizes.piece => {
                let mut tokens = before.clone();
                tokens.append(&mut pieces::encode(self, text, sizes)?);
                tokens.extend(after);
                Ok(tokens)
            }
            _ if text.len() > sizes.max_piece => Err(uncuttable(text, sizes.max_piece)),
            _ => self.encode_whole(text, true),
        }
    }

    /// The tokens of a text without special ones. A long one is taken in pieces, as by [`Self::encode`].
    pub(crate) fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let sizes = pieces::Sizes::default();
        match text.len() > sizes.piece {
            true => pieces::encode(self, text, sizes),
            false => self.encode_whole(text, false),
        }
    }

    fn encode_whole(&self, text: &str, with_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.check_growth(text)?;
        let encoding = guarded(|| self.pipeline.encode_fast(text, with_special));
        let encoding = encoding.map_err(|reason| refused(text, reason))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Refuses a text that the normalizer may make too long.
    fn check_growth(&self, text: &str) -> Result<(), TokenizerError> {
        let bytes = text.len().saturating_mul(self.growth);
        match bytes > MAX_NORMALIZED_BYTES && self.growth > 1 {
            true => Err(refused(
                text,
                format!(
                    "its normalizer may make {} MB of the {} bytes",
                    bytes / 1_000_000,
                    text.len()
                ),
            )),
            false => Ok(()),
        }
    }

    /// The tokens of a text that holds its special tokens already, each with the characters (from, to) that it has of it.
    pub(crate) fn encode_with_offsets(
        &self,
        text: &str,
    ) -> Result<(Vec<u32>, Vec<Offsets>), TokenizerError> {
        let limit = pieces::Sizes::default().max_piece;
        if text.len() > limit {
            return Err(uncuttable(text, limit));
        }
        self.check_growth(text)?;
        let encoding = guarded(|| self.pipeline.encode_char_offsets(text, false));
        let encoding = encoding.map_err(|reason| refused(text, reason))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// The text of tokens, special ones included; bytes that are no whole character are shown as such.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.pipeline.decode(tokens, false).unwrap_or_default()
    }

    /// The text of the token that ends a document.
    pub fn eos_token(&self) -> &str {
        &self.eos_token
    }

    /// The token that ends a document.
    pub fn eos_id(&self) -> u32 {
        self.eos_id
    }

    /// The token that fills a row: the tokenizer's own, or EOS.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Whether [`Self::encode`] ends every text with EOS by itself.
    pub fn appends_eos(&self) -> bool {
        self.appends_eos
    }

    /// Rows that an embedding must have for this tokenizer: its largest token id, added tokens included, plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Tokenizers with equal fingerprints give equal tokens.
    pub fn fingerprint(&self) -> &blake3::Hash {
        &self.fingerprint
    }
}

fn refused(text: &str, reason: String) -> TokenizerError {
    TokenizerError::Encode {
        beginning: text.chars().take(40).collect(),
        reason,
    }
}

fn uncuttable(text: &str, limit: usize) -> TokenizerError {
    TokenizerError::Uncuttable {
        beginning: text.chars().take(40).collect(),
        limit,
    }
}

/// What is before and after the tokens of a text.
fn around(with_special: &[u32], plain: &[u32]) -> Option<(Vec<u32>, Vec<u32>)> {
    if plain.is_empty() {
        return None;
    }
    let mut places = with_special.windows(plain.len());
    let before = places.position(|part| part == plain)?;
    let after = before + plain.len();
    Some((
        with_special[..before].to_vec(),
        with_special[after..].to_vec(),
    ))
}

fn fingerprint(tokenizer_json: &[u8], eos_id: u32, pad_id: u32) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tokenizer_json);
    hasher.update(&eos_id.to_le_bytes());
    hasher.update(&pad_id.to_le_bytes());
    hasher.finalize()
}

/// A token that somebody asked for.
fn id_of_eos(pipeline: &Pipeline, token: &str) -> Result<u32, TokenizerError> {
    let id = pipeline.token_to_id(token);
    id.ok_or_else(|| TokenizerError::NoSuchEos {
        token: token.into(),
    })
}

fn find_eos(dir: &Path, pipeline: &Pipeline) -> Result<u32, TokenizerError> {
    for file in EOS_FILES {
        if let Some(id) = special_token(dir, file, "eos_token", pipeline)? {
            return Ok(id);
        }
        let config = read_json(&dir.join(file))?;
        let id = match &config["eos_token_id"] {
            // Chat models list several: the first is the one that ends a document.
            Value::Array(ids) => ids.first().and_then(Value::as_u64),
            id => id.as_u64(),
        };
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            return Ok(id);
        }
    }
    Err(TokenizerError::NoEos { dir: dir.into() })
}

/// The id of the token that `file` names as `role`, either as a string or as an added token with its settings.
fn special_token(
    dir: &Path,
    file: &str,
    role: &'static str,
    pipeline: &Pipeline,
) -> Result<Option<u32>, TokenizerError> {
    let path = dir.join(file);
    let config = read_json(&path)?;
    let named = &config[role];
    let Some(token) = named.as_str().or_else(|| named["content"].as_str()) else {
        return Ok(None);
    };
    match pipeline.token_to_id(token) {
        Some(id) => Ok(Some(id)),
        None => Err(TokenizerError::UnknownToken {
            path,
            token: token.into(),
            role,
        }),
    }
}

/// A JSON file, or null where there is none: all of these files are optional.
pub(crate) fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    let bytes = match read_small(path, JSON_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => {
            let path = path.into();
            return Err(TokenizerError::Read { path, source });
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| TokenizerError::Invalid {
        path: path.into(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    /// The tests' vocabulary, with a gap before its last word.
    const WORDS: [(&str, u32); 8] = [
        ("[unk]", 0),
        ("a", 1),
        ("<eos>", 2),
        ("b", 3),
        ("c", 4),
        ("d", 5),
        ("e", 6),
        ("f", 20),
    ];

    /// Writes a tokenizer of whole words into `dir`.
    fn write_tokenizer(dir: &Path, extra: Value) {
        let vocab: serde_json::Map<String, Value> = WORDS
            .iter()
            .map(|(word, id)| ((*word).to_owned(), json!(id)))
            .collect();
        let mut tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{"id": 8, "content": "<added>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[unk]"}
        });
        for (key, value) in extra.as_object().unwrap() {
            tokenizer[key] = value.clone();
        }
        fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    }

    fn dir_with(files: &[(&str, Value)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path(), json!({}));
        for (name, content) in files {
            fs::write(dir.path().join(name), content.to_string()).unwrap();
        }
        dir
    }

    #[test]
    fn eos_is_found_wherever_it_is_named() {
        for (file, content) in [
            ("tokenizer_config.json", json!({"eos_token": "<eos>"})),
            (
                "tokenizer_config.json",
                json!({"eos_token": {"content": "<eos>", "special": true}}),
            ),
            ("special_tokens_map.json", json!({"eos_token": "<eos>"})),
            ("config.json", json!({"eos_token_id": 2})),
            ("generation_config.json", json!({"eos_token_id": [2, 5]})),
        ] {
            let dir = dir_with(&[(file, content)]);
            let tokenizer = Tokenizer::load(dir.path()).unwrap();
            assert_eq!(tokenizer.eos_id(), 2, "{file}");
            assert_eq!(
                tokenizer.pad_id(),
                2,
                "EOS fills rows where no pad token is"
            );
            assert!(!tokenizer.appends_eos());
        }
    }

    #[test]
    fn the_vocabulary_reaches_to_the_last_id() {
        let config = json!({"eos_token": "<eos>", "pad_token": "f"});
        let dir = dir_with(&[("tokenizer_config.json", config)]);
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 21, "9 tokens, the last of them 20");
        assert_eq!(tokenizer.pad_id(), 20);
        assert_eq!(
            tokenizer.encode("a b nonsense <added>").unwrap(),
            [1, 3, 0, 8]
        );
        assert_eq!(tokenizer.encode("").unwrap(), [0u32; 0]);
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_off() {
        let dir = dir_with(&[("config.json", json!({"eos_token_id": 2}))]);
        let truncation =
            json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        let padding = json!({"strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 2, "pad_type_id": 0, "pad_token": "<eos>"});
        write_tokenizer(
            dir.path(),
            json!({"truncation": truncation, "padding": padding}),
        );
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.encode("a b c").unwrap(), [1, 3, 4]);
        assert_eq!(tokenizer.encode("a").unwrap(), [1]);
    }

    #[test]
    fn a_tokenizer_that_ends_texts_itself_is_recognised() {
        let dir = dir_with(&[("config.json", json!({"eos_token_id": 2}))]);
        let template = json!({"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
            "pair": [], "special_tokens": {"<eos>": {"id": "<eos>", "ids": [2], "tokens": ["<eos>"]}}});
        write_tokenizer(dir.path(), json!({"post_processor": template}));
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert!(tokenizer.appends_eos());
        assert_eq!(tokenizer.encode("a").unwrap(), [1, 2]);
    }

    #[test]
    fn a_pattern_that_never_ends_is_an_error() {
        let pattern = |regex: &str| {
            let dir = dir_with(&[("config.json", json!({"eos_token_id": 2}))]);
            let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
            write_tokenizer(dir.path(), json!({"pre_tokenizer": split}));
            dir
        };
        let tokenizer = Tokenizer::load(pattern("(a+)+b").path()).unwrap();
        let error = tokenizer.encode(&"a".repeat(100)).unwrap_err().to_string();
        assert!(error.contains("retry-limit-in-match"), "{error}");
        assert!(tokenizer.encode("aab").is_ok());
        let error = Tokenizer::load(pattern("(a").path()).unwrap_err();
        assert!(matches!(error, TokenizerError::Invalid { .. }), "{error}");
    }

    #[test]
    fn normalizers_that_make_a_text_much_longer_are_refused() {
        let replace = |pattern: serde_json::Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let growth = |normalizer: serde_json::Value| {
            template::check(json!({"normalizer": normalizer}).to_string().as_bytes())
        };
        let space = || replace(json!({"String": " "}), "\u{2581}");
        assert_eq!(growth(json!(null)), Ok(1));
        assert_eq!(growth(space()), Ok(3));
        assert_eq!(growth(replace(json!({"String": "abcd"}), "")), Ok(1));
        assert_eq!(growth(replace(json!({"Regex": "\\s+"}), " ")), Ok(2));
        let sequence =
            |all: Vec<serde_json::Value>| json!({"type": "Sequence", "normalizers": all});
        let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
        assert_eq!(growth(sequence(vec![prepend, space()])), Ok(3));
        let twice = || replace(json!({"String": "e"}), "ee");
        let (long, often) = (
            replace(json!({"String": "e"}), &"e".repeat(2000)),
            sequence(vec![twice(); 40]),
        );
        for bad in [long, often.clone(), sequence(vec![often])] {
            assert!(growth(bad).unwrap_err().contains("times as long"));
        }
    }

    #[test]
    fn templates_that_the_library_would_fall_over_are_refused() {
        let dir = dir_with(&[("config.json", json!({"eos_token_id": 2}))]);
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let template = |single: Value, ids: Value| {
            json!({"type": "TemplateProcessing", "single": single, "pair": [],
                "special_tokens": {"<eos>": {"id": "<eos>", "ids": ids, "tokens": ["<eos>"]}}})
        };
        let good = template(json!([text("A"), special("<eos>")]), json!([2]));
        let nested = |inner: &Value| json!({"type": "Sequence", "processors": [inner]});
        let unknown = template(json!([text("A"), special("<none>")]), json!([2]));
        for (processor, word) in [
            (unknown.clone(), "<none>"),
            (nested(&unknown), "<none>"),
            (
                template(json!([text("B"), special("<eos>")]), json!([2])),
                "\"B\"",
            ),
            (
                template(json!([text("A"), special("<eos>")]), json!([999])),
                "999",
            ),
            (
                json!({"type": "RobertaProcessing", "sep": ["</s>", 5000], "cls": ["<s>", 1],
                    "trim_offsets": true, "add_prefix_space": false}),
                "5000",
            ),
        ] {
            write_tokenizer(dir.path(), json!({"post_processor": processor}));
            let said = Tokenizer::load(dir.path()).unwrap_err().to_string();
            assert!(
                said.contains("tokenizer.json") && said.contains(word),
                "{said}"
            );
        }
        write_tokenizer(dir.path(), json!({"post_processor": nested(&good)}));
        assert!(Tokenizer::load(dir.path()).unwrap().appends_eos());
        // An id of elsewhere that no row of an embedding may be there for.
        let dir = dir_with(&[("config.json", json!({"eos_token_id": 4_000_000}))]);
        let said = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(said.contains("4000000"), "{said}");
    }

    #[test]
    fn errors_name_the_file_and_what_is_wrong() {
        let message = |dir: &tempfile::TempDir| {
            let message = Tokenizer::load(dir.path()).unwrap_err().to_string();
            println!("{message}");
            message
        };
        let empty = tempfile::tempdir().unwrap();
        assert!(message(&empty).contains("has no tokenizer.json"));
        fs::write(empty.path().join("tokenizer.json"), "{").unwrap();
        assert!(message(&empty).contains("tokenizer.json is not valid"));
        assert!(message(&dir_with(&[])).contains("no EOS token"));
        let unknown = json!({"eos_token": "<end>"});
        let said = message(&dir_with(&[("tokenizer_config.json", unknown)]));
        assert!(said.contains("names `<end>` as eos_token"), "{said}");
        let broken = dir_with(&[]);
        fs::write(broken.path().join("config.json"), "nonsense").unwrap();
        assert!(message(&broken).contains("config.json is not valid"));
    }

    #[test]
    fn fingerprints_follow_the_file_and_eos() {
        let load = |eos: u32| {
            let dir = dir_with(&[("config.json", json!({"eos_token_id": eos}))]);
            *Tokenizer::load(dir.path()).unwrap().fingerprint()
        };
        assert_eq!(load(2), load(2));
        assert_ne!(load(2), load(3));
    }
}
