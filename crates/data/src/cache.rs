//! All documents of a dataset as tokens, in one memory-mapped file.
//!
//! A cache depends on the dataset's content and on the tokenizer, not on how rows are cut from it: packed or not, and
//! for every `seq_length`, the same file serves.

mod build;
mod format;
mod key;
mod pipeline;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use mmap_guard::FileData;
use rayon::prelude::*;
use thiserror::Error;

use crate::example::{Encoder, ExampleError, ExampleKind};
use crate::label::IGNORED_LABEL;
use crate::progress::Progress;
use crate::search::partition_index;
use crate::source::{Source, SourceError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use format::{Header, Layout};

/// Set in a stored token that is not trained.
const UNTRAINED: u32 = 1 << 31;

/// A token, and whether it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(u32);

impl Token {
    /// A token that is trained.
    pub fn trained(id: u32) -> Self {
        Self(id)
    }

    /// Its number in the vocabulary.
    pub fn id(self) -> u32 {
        self.0 & !UNTRAINED
    }

    /// Whether it is a target.
    pub fn is_trained(self) -> bool {
        self.0 & UNTRAINED == 0
    }

    /// What the loss sees: its number, or [`IGNORED_LABEL`].
    pub fn label(self) -> i64 {
        match self.is_trained() {
            true => i64::from(self.id()),
            false => IGNORED_LABEL,
        }
    }
}

/// Tokens and the borders of documents, shared by all processes of a host through the page cache.
#[derive(Debug)]
pub struct TokenCache {
    path: PathBuf,
    data: FileData,
    header: Header,
    layout: Layout,
}

/// How far to trust a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Checks the header, its key and the file's size. For a file that another process of this run has just verified.
    Header,
    /// Checks every byte too.
    Full,
}

/// Why there is no token cache.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The dataset could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A document could not be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A row that is not what the others are.
    #[error("row {document} of the dataset: {source}")]
    Example {
        /// Which, from 1.
        document: u64,
        /// What is wrong.
        source: ExampleError,
    },
    /// A template that takes nothing.
    #[error(
        "dataset {place}: none of its {refused} conversations can be trained. The first of them, row {document}: {source}"
    )]
    AllRefused {
        /// What was asked for.
        place: String,
        /// Conversations.
        refused: u64,
        /// The first, from 1.
        document: u64,
        /// Why.
        source: ExampleError,
    },
    /// Tokens, and none of them a target.
    #[error(
        "dataset {place}: in none of its {documents} documents is anything trained: no message is the assistant's, or no \
         completion has text (--assistant_only_loss, --completion_only_loss)"
    )]
    NothingTrained {
        /// What was asked for.
        place: String,
        /// Documents.
        documents: u64,
    },
    /// Nothing to train on.
    #[error("dataset {place} is empty: none of its {documents} documents has a token")]
    Empty {
        /// What was asked for.
        place: String,
        /// Documents that were read.
        documents: u64,
    },
    /// A file that could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is not as it was written.
    #[error("token cache {} is damaged ({reason}): remove it, and it is built again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: &'static str,
    },
}

impl TokenCache {
    /// The cache of `source` as `encoder` sees it, below `cache_dir`; it is built if it is not there or damaged.
    ///
    /// Documents are tokenized by as many threads as the current rayon pool has. The file appears whole or not at all. If several
    /// processes call this at the same time, one builds and the others wait for it.
    ///
    /// # Errors
    /// A dataset that cannot be read or is empty; a folder that cannot be written.
    pub fn build_or_open(
        source: &Source,
        encoder: &Encoder,
        cache_dir: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Self, CacheError> {
        build::build_or_open(source, encoder, cache_dir, progress)
    }

    /// Opens the file of a cache that was built before: its [`Self::path`].
    ///
    /// # Errors
    /// A file that cannot be read, is damaged as far as `verify` looks, or holds other tokens than its name says.
    pub fn open(path: &Path, verify: Verify) -> Result<Self, CacheError> {
        let cache = Self::open_any(path, verify)?;
        // The name is a promise that anyone can give to any file; the header's key is part of what was written.
        if path.file_stem().and_then(OsStr::to_str) != Some(&cache.key()) {
            return Err(CacheError::Damaged {
                path: path.into(),
                reason: "it holds the tokens of other data or another tokenizer than its name says",
            });
        }
        Ok(cache)
    }

    /// Opens a cache under whatever name.
    fn open_any(path: &Path, verify: Verify) -> Result<Self, CacheError> {
        // Opening a pipe that somebody has put there would wait for ever.
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(CacheError::Io {
                action: "read token cache",
                path: path.into(),
                source: io::Error::other("it is not a regular file"),
            });
        }
        let data = mmap_guard::map_file(path).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidInput => CacheError::Damaged {
                path: path.into(),
                reason: "the file is empty",
            },
            _ => CacheError::Io {
                action: "map token cache",
                path: path.into(),
                source,
            },
        })?;
        let (header, layout) =
            format::check(&data, verify).map_err(|reason| CacheError::Damaged {
                path: path.into(),
                reason,
            })?;
        Ok(Self {
            path: path.into(),
            data,
            header,
            layout,
        })
    }

    /// The cache, unless it has a token that `tokenizer` does not, for which an embedding may have no row.
    fn within(self, tokenizer: &Tokenizer) -> Result<Self, CacheError> {
        let vocabulary = tokenizer.vocab_size() as u64;
        let is_within = |token: u32| u64::from(token) < vocabulary;
        let tokens = self.all_tokens().par_chunks(1 << 16);
        let all = tokens.all(|tokens| tokens.iter().all(|token| is_within(Token(*token).id())));
        if all
            && [self.header.eos_id, self.header.pad_id]
                .into_iter()
                .all(is_within)
        {
            return Ok(self);
        }
        Err(CacheError::Damaged {
            path: self.path,
            reason: "it has a token beyond the tokenizer's vocabulary",
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the tokens depend on, as a hash in hexadecimal digits: equal keys have equal tokens.
    pub fn key(&self) -> String {
        blake3::Hash::from_bytes(self.header.key)
            .to_hex()
            .to_string()
    }

    /// What the documents were.
    pub fn kind(&self) -> ExampleKind {
        let kinds = [ExampleKind::Messages, ExampleKind::PromptCompletion];
        let known = kinds
            .into_iter()
            .find(|kind| *kind as u8 == self.header.kind);
        known.unwrap_or(ExampleKind::Text)
    }

    /// Documents that have at least one token.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// Tokens of all documents, without what joins them.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Tokens of them that are trained.
    pub fn trained_tokens(&self) -> u64 {
        self.header.trained
    }

    /// Documents that are not among them, because the chat template refuses them.
    pub fn refused(&self) -> u64 {
        self.header.refused
    }

    /// The token that fills incomplete rows.
    pub fn pad_id(&self) -> u32 {
        self.header.pad_id
    }

    /// The token that follows each document, unless the documents end with it themselves: EOS.
    pub fn end_of_document(&self) -> Option<u32> {
        (self.header.separator == 1).then_some(self.header.eos_id)
    }

    /// The tokens of document `index`.
    pub fn document(&self, index: u64) -> impl ExactSizeIterator<Item = Token> + Clone + use<'_> {
        let ends = self.ends();
        let index = index as usize;
        let start = if index == 0 { 0 } else { ends[index - 1] };
        let tokens = &self.all_tokens()[start as usize..ends[index] as usize];
        tokens.iter().copied().map(Token)
    }

    /// Tokens of all documents, each followed by EOS.
    pub fn stream_len(&self) -> u64 {
        self.header.tokens + self.header.separator * self.header.documents
    }

    /// Copies the part of this stream from `start` on that fills `out`; and its labels, where only they are ignored that are
    /// not trained.
    pub fn copy_stream(&self, start: u64, out: &mut [i64], labels: &mut [i64]) {
        let (tokens, ends) = (self.all_tokens(), self.ends());
        let separator = self.header.separator;
        // Document `d` ends before this place of the stream; `d` separators were before its own.
        let end_of = |d: usize| ends[d] + (d as u64 + 1) * separator;
        let mut document = partition_index(ends.len(), |d| end_of(d) <= start);
        let mut next = (start - document as u64 * separator) as usize;
        let mut filled = 0;
        while filled < out.len() {
            let count = (ends[document] as usize - next).min(out.len() - filled);
            let places = out[filled..].iter_mut().zip(&mut labels[filled..]);
            for ((id, label), from) in places.zip(&tokens[next..next + count]) {
                *id = i64::from(Token(*from).id());
                *label = Token(*from).label();
            }
            filled += count;
            next += count;
            if separator == 1 && filled < out.len() {
                out[filled] = i64::from(self.header.eos_id);
                labels[filled] = out[filled];
                filled += 1;
            }
            document += 1;
        }
    }

    /// Where the documents of a part of this stream begin, counted from its own beginning: 0 for the first, which may have begun
    /// before, and the others.
    pub fn stream_starts(&self, start: u64, len: usize) -> Vec<u32> {
        let (ends, separator) = (self.ends(), self.header.separator);
        let end_of = |d: usize| ends[d] + (d as u64 + 1) * separator;
        let first = partition_index(ends.len(), |d| end_of(d) <= start);
        let later = (first..ends.len()).map(|d| end_of(d) - start);
        let later = later.take_while(|&start| start < len as u64);
        [0].into_iter()
            .chain(later.map(|start| start as u32))
            .collect()
    }

    fn all_tokens(&self) -> &[u32] {
        bytemuck::cast_slice(&self.data[self.layout.tokens.clone()])
    }

    /// For each document, where its tokens end.
    fn ends(&self) -> &[u64] {
        bytemuck::cast_slice(&self.data[self.layout.ends.clone()])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::build::Writer;
    use super::pipeline::Encoded;
    use super::*;
    use std::fs;
    use std::sync::Arc;

    /// A cache of these documents; its file is gone when this returns, and its mapping stays.
    pub(crate) fn cache_of(documents: &[&[u32]], eos_id: u32) -> Arc<TokenCache> {
        joined(documents, eos_id, 1)
    }

    /// The same, of documents that end with EOS themselves.
    pub(crate) fn ended_cache_of(documents: &[&[u32]], eos_id: u32) -> Arc<TokenCache> {
        joined(documents, eos_id, 0)
    }

    fn joined(documents: &[&[u32]], eos_id: u32, separator: u64) -> Arc<TokenCache> {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), documents, eos_id, separator);
        Arc::new(TokenCache::open_any(&path, Verify::Full).unwrap())
    }

    fn write(dir: &Path, documents: &[&[u32]], eos_id: u32, separator: u64) -> PathBuf {
        let mut writer = Writer::new(dir, "test").unwrap();
        for document in documents {
            let mut encoded = Encoded::default();
            encoded.push(document, &vec![true; document.len()]);
            writer.push(&encoded).unwrap();
        }
        let header = Header {
            eos_id,
            pad_id: eos_id,
            separator,
            key: *blake3::hash(format!("{documents:?}").as_bytes()).as_bytes(),
            ..Header::default()
        };
        let path = dir.join("test.tokens");
        writer.finish(header, &path).unwrap();
        path
    }

    #[test]
    fn documents_come_back() {
        let documents: [&[u32]; 3] = [&[1, 2, 3], &[4], &[5, 6]];
        let cache = cache_of(&documents, 9);
        assert_eq!(
            (cache.documents(), cache.tokens(), cache.stream_len()),
            (3, 6, 9)
        );
        for (index, document) in documents.iter().enumerate() {
            let found: Vec<u32> = cache.document(index as u64).map(Token::id).collect();
            assert_eq!(found, *document);
        }
        let stream = [1, 2, 3, 9, 4, 9, 5, 6, 9];
        for start in 0..stream.len() {
            for end in start..=stream.len() {
                let mut out = vec![0; end - start];
                let mut labels = out.clone();
                cache.copy_stream(start as u64, &mut out, &mut labels);
                assert_eq!(out, stream[start..end], "{start}..{end}");
                assert_eq!(labels, out);
            }
        }
    }

    #[test]
    fn nothing_is_put_between_documents_that_end_with_eos_already() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &[&[1, 9], &[2, 9]], 9, 0);
        let cache = TokenCache::open_any(&path, Verify::Full).unwrap();
        let mut out = vec![0; cache.stream_len() as usize];
        let mut labels = out.clone();
        cache.copy_stream(0, &mut out, &mut labels);
        assert_eq!(out, [1, 9, 2, 9]);
        cache.copy_stream(1, &mut out[..2], &mut labels[..2]);
        assert_eq!(out[..2], [9, 2]);
    }

    #[test]
    fn a_cache_under_the_name_of_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &[&[1, 2, 3]], 9, 1);
        let key = TokenCache::open_any(&path, Verify::Full).unwrap().key();
        let named = |name: &str| {
            let copy = dir.path().join(format!("{name}.tokens"));
            fs::copy(&path, &copy).unwrap();
            copy
        };
        let (own, other) = (named(&key), named(&"0".repeat(64)));
        for verify in [Verify::Header, Verify::Full] {
            assert_eq!(TokenCache::open(&own, verify).unwrap().key(), key);
            let error = TokenCache::open(&other, verify).unwrap_err().to_string();
            assert!(error.contains("of other data"), "{error}");
        }
    }

    #[test]
    fn every_flipped_byte_and_every_length_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &[&[1, 2, 3], &[4, 5]], 9, 1);
        let good = fs::read(&path).unwrap();
        let damaged = dir.path().join("damaged");
        let check = |bytes: &[u8], what: &str| {
            fs::write(&damaged, bytes).unwrap();
            let error = TokenCache::open_any(&damaged, Verify::Full).expect_err(what);
            assert!(
                matches!(error, CacheError::Damaged { .. }),
                "{what}: {error}"
            );
        };
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0x40;
            check(&bad, &format!("byte {index}"));
        }
        for length in 0..good.len() {
            check(&good[..length], &format!("length {length}"));
        }
        check(&[&good[..], &[0]].concat(), "one byte more");
    }
}
