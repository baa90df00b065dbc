//! The part of a vocabulary that a shard has.

use std::ops::Range;

/// How many entries the shard has.
///
/// # Panics
/// When it has none.
pub(crate) fn entries(vocab: &Range<i64>) -> usize {
    assert!(
        vocab.start < vocab.end,
        "the shard {vocab:?} of the vocabulary is empty"
    );
    (vocab.end - vocab.start) as usize
}

/// Where the entry `id` is in the shard; `None` where it belongs to another.
pub(crate) fn local(id: i64, vocab: &Range<i64>) -> Option<usize> {
    vocab.contains(&id).then(|| (id - vocab.start) as usize)
}
