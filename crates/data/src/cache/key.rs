//! What the tokens of a cache depend on, as one hash.

use super::CacheError;
use super::format::VERSION;
use crate::source::Source;
use crate::tokenizer::Tokenizer;

/// Separates this hash from any other of the same bytes.
const CONTEXT: &str = "tandem token cache: content of the dataset, what is taken of it, tokenizer";

/// Hashes the files' content (not their names or times, so a moved or copied dataset keeps its cache), what is taken of
/// them, and the tokenizer. Reads all files once, with all threads.
pub(super) fn key(source: &Source, tokenizer: &Tokenizer) -> Result<blake3::Hash, CacheError> {
    let mut key = blake3::Hasher::new_derive_key(CONTEXT);
    key.update(&VERSION.to_le_bytes());
    key.update(tokenizer.fingerprint().as_bytes());
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
    }
    Ok(key.finalize())
}
