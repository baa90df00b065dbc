//! A long document in pieces: what a tokenizer keeps of a text while it works is more than a hundred times the text.

use std::ops::Range;

use rayon::prelude::*;

use super::{Tokenizer, TokenizerError};

/// A text of up to so many bytes is tokenized at once, and a longer one in pieces of about as many.
const PIECE_BYTES: usize = 256 << 10;

/// The longest piece of a text that can be cut nowhere.
const MAX_PIECE_BYTES: usize = 8 << 20;

/// How much text on either side of a border shows whether it is safe: more than any token has.
const WINDOW_BYTES: usize = 512;

/// Borders that are tried before a piece is made longer.
const TRIES: usize = 64;

/// Sizes, which tests make small.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) piece: usize,
    pub(super) max_piece: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            piece: PIECE_BYTES,
            max_piece: MAX_PIECE_BYTES,
        }
    }
}

/// The tokens of `text` without special ones, the same as if it had been taken whole.
///
/// It is cut where the text around gives the same tokens in two parts as in one: between words, for nearly all tokenizers.
///
/// # Errors
/// Text that the tokenizer refuses, or of which a part that is too long can be cut nowhere.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    sizes: Sizes,
) -> Result<Vec<u32>, TokenizerError> {
    let pieces = cut(tokenizer, text, sizes)?;
    let tokens: Vec<Vec<u32>> = pieces
        .into_par_iter()
        .map(|piece| tokenizer.encode_whole(&text[piece], false))
        .collect::<Result<_, _>>()?;
    Ok(tokens.concat())
}

fn cut(
    tokenizer: &Tokenizer,
    text: &str,
    sizes: Sizes,
) -> Result<Vec<Range<usize>>, TokenizerError> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let mut size = sizes.piece;
        let end = loop {
            if text.len() - start <= size {
                break text.len();
            }
            if let Some(border) = safe_border(tokenizer, text, start, start + size)? {
                break border;
            }
            if size >= sizes.max_piece {
                return Err(TokenizerError::Uncuttable {
                    beginning: text[start..].chars().take(40).collect(),
                    limit: sizes.max_piece,
                });
            }
            size = (2 * size).min(sizes.max_piece);
        };
        pieces.push(start..end);
        start = end;
    }
    Ok(pieces)
}

/// The last safe border before `end`, of those that are tried.
fn safe_border(
    tokenizer: &Tokenizer,
    text: &str,
    start: usize,
    end: usize,
) -> Result<Option<usize>, TokenizerError> {
    // Where a word begins or ends. The first half is left alone, so that pieces do not become ever shorter.
    let is_word = |c: char| c.is_alphanumeric();
    let from = text.ceil_char_boundary(start + (end - start) / 2);
    let part = &text[from..text.floor_char_boundary(end)];
    let mut later: Option<char> = None;
    let mut tries = 0;
    for (at, c) in part.char_indices().rev() {
        let border = from + at + c.len_utf8();
        if later.is_some_and(|later| is_word(c) != is_word(later)) {
            if tries == TRIES {
                break;
            }
            tries += 1;
            if is_safe(tokenizer, text, border)? {
                return Ok(Some(border));
            }
        }
        later = Some(c);
    }
    Ok(None)
}

fn is_safe(tokenizer: &Tokenizer, text: &str, border: usize) -> Result<bool, TokenizerError> {
    let start = text.ceil_char_boundary(border.saturating_sub(WINDOW_BYTES));
    let end = text.floor_char_boundary(border + WINDOW_BYTES);
    let whole = tokenizer.encode_whole(&text[start..end], false)?;
    let mut parts = tokenizer.encode_whole(&text[start..border], false)?;
    parts.extend(tokenizer.encode_whole(&text[border..end], false)?);
    Ok(whole == parts)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TEXT: &str = include_str!("../../../../demo/data/kjv.txt");
    const SMALL: Sizes = Sizes {
        piece: 3000,
        max_piece: 12_000,
    };

    fn demo() -> Tokenizer {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/model");
        Tokenizer::load(Path::new(dir)).unwrap()
    }

    fn start_of(text: &str, bytes: usize) -> &str {
        &text[..text.floor_char_boundary(bytes)]
    }

    #[test]
    fn pieces_give_the_tokens_of_the_whole() {
        let tokenizer = demo();
        let text = start_of(TEXT, 300_000);
        let lined = text.replace('\n', "  \r\n\n\t");
        let spaced = text.replace(' ', "   ");
        let foreign =
            "\u{4e2d}\u{6587}\u{ff0c}\u{6ca1}\u{6709}\u{3002} 12,345 caf\u{e9}'s \u{1f980}"
                .repeat(2000);
        for text in [text, &lined, &spaced, &foreign] {
            let whole = tokenizer.encode_whole(text, false).unwrap();
            assert!(encode(&tokenizer, text, SMALL).unwrap() == whole);
        }
    }

    #[test]
    fn special_tokens_stand_around_the_whole() {
        let tokenizer = demo();
        let text = TEXT.repeat(2 * PIECE_BYTES / TEXT.len() + 1);
        let whole = tokenizer.pipeline.encode_fast(text.as_str(), true).unwrap();
        assert!(tokenizer.encode(&text).unwrap() == whole.get_ids());
    }

    #[test]
    fn what_can_be_cut_nowhere_is_refused_above_a_size() {
        let tokenizer = demo();
        let word = "a".repeat(10_000);
        let whole = tokenizer.encode_whole(&word, false).unwrap();
        assert!(encode(&tokenizer, &word, SMALL).unwrap() == whole);
        let message = encode(&tokenizer, &"a".repeat(13_000), SMALL)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("aaaa") && message.contains("12000 bytes"),
            "{message}"
        );
    }
}
