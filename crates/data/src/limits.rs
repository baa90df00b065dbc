//! How large files may be that are read whole.

/// What a tokenizer may have: ten times the largest that is published.
pub(crate) const TOKENIZER_BYTES: u64 = 512 << 20;

/// What any other JSON file of a model may have. The index of a model with a million tensors has less.
pub(crate) const JSON_BYTES: u64 = 128 << 20;
