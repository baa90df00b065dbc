//! What the tokens of a cache depend on, as one hash.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::CacheError;
use super::format::VERSION;
use crate::example::Encoder;
use crate::source::{BYTE_ORDER_MARK, Kind, Source};

/// Separates this hash from any other of the same bytes.
const CONTEXT: &str = "tandem token cache: content of the dataset, what is taken of it, tokenizer";

/// Hashes the files' content (not their names or times, so a moved or copied dataset keeps its cache), what is taken of
/// them, and what makes tokens of them. Reads all files once, with all threads.
pub(super) fn key(source: &Source, encoder: &Encoder) -> Result<blake3::Hash, CacheError> {
    let mut key = blake3::Hasher::new_derive_key(CONTEXT);
    key.update(&VERSION.to_le_bytes());
    key.update(encoder.fingerprint().as_bytes());
    key.update(&source.percentage().to_le_bytes());
    let format = format!("{:?}", source.format());
    for text in [&format, source.text_column()] {
        key.update(&(text.len() as u64).to_le_bytes());
        key.update(text.as_bytes());
    }
    for path in source.files() {
        let mut content = blake3::Hasher::new();
        content
            .update_mmap_rayon(path)
            .map_err(|source| CacheError::Io {
                action: "read",
                path: path.clone(),
                source,
            })?;
        key.update(content.finalize().as_bytes());
        read_otherwise(path, &mut key)?;
    }
    Ok(key.finalize())
}

/// Adds what makes the same bytes other documents. A file of text that is neither packed nor marked adds nothing, so that
/// caches of before there were others stay.
fn read_otherwise(path: &Path, key: &mut blake3::Hasher) -> Result<(), CacheError> {
    let kind = Kind::of(&path.to_string_lossy());
    if let Some(kind) = kind.filter(|kind| kind.compression.is_some() || kind.has_tabs) {
        key.update(format!("{:?} {}", kind.compression, kind.has_tabs).as_bytes());
    }
    let mut first = Vec::new();
    File::open(path)
        .and_then(|file| file.take(3).read_to_end(&mut first))
        .map_err(|source| CacheError::Io {
            action: "read",
            path: path.into(),
            source,
        })?;
    if first == BYTE_ORDER_MARK {
        key.update(b"without its mark");
    }
    Ok(())
}
