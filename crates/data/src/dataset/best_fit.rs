//! Rows of whole documents, packed by best-fit decreasing.

use rayon::prelude::*;

use super::bins::Bins;
use crate::cache::{Token, TokenCache};
use crate::error::DatasetError;

/// Which documents, or pieces of them, are in which row.
#[derive(Debug, Clone)]
pub(super) struct BestFitRows {
    bins: Bins,
    /// Documents of several pieces, in order: few, where an index of all pieces would be large.
    long: Vec<Long>,
    /// Documents that are no longer than a row and have no target.
    untrained: u64,
    /// Documents whose ends no row has.
    cut: u64,
    /// Tokens of all rows, without padding.
    tokens: u64,
}

/// A document that is longer than a row.
#[derive(Debug, Clone, Copy)]
struct Long {
    document: u64,
    /// The number of its first piece, counted through all documents.
    first: u64,
    pieces: u64,
}

/// What of a document is in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) document: u64,
    /// Its first token, counted from the document's.
    pub(super) start: usize,
}

impl BestFitRows {
    /// Packs the documents of `cache`, each with its end. Those that are longer than a row are cut, into pieces if they are
    /// `split`. Where nothing is trained there is no place in a row: as documents do not see each other, nobody would miss it.
    ///
    /// # Errors
    /// No document with a target; more documents than can be counted.
    pub(super) fn new(
        cache: &TokenCache,
        seq_length: usize,
        split: bool,
    ) -> Result<Self, DatasetError> {
        let documents = cache.documents();
        let length = |document| cache.document(document).len() + end_of(cache);
        let is_long = |document: &u64| length(*document) > seq_length;
        let all_long: Vec<u64> = (0..documents).into_par_iter().filter(is_long).collect();
        let mut long = Vec::new();
        let mut extra = 0;
        for &document in all_long.iter().filter(|_| split) {
            let pieces = length(document).div_ceil(seq_length) as u64;
            let first = document + extra;
            long.push(Long {
                document,
                first,
                pieces,
            });
            extra += pieces - 1;
        }
        let units = documents + extra;
        if units >= u64::from(u32::MAX) {
            return Err(DatasetError::TooManyDocuments { documents });
        }
        let lengths: Vec<u32> = (0..units)
            .into_par_iter()
            .map(|unit| {
                let piece = piece_of(&long, unit, seq_length);
                let mut tokens = tokens_of(cache, piece, seq_length);
                let length = tokens.clone().count();
                match tokens.by_ref().skip(1).any(Token::is_trained) {
                    true => length as u32,
                    false => 0,
                }
            })
            .collect();
        let bins = Bins::pack(&lengths, seq_length);
        if bins.len() == 0 {
            return Err(DatasetError::NoTargets { documents });
        }
        let is_whole = |unit: u64| {
            let piece = piece_of(&long, unit, seq_length);
            let document = long.binary_search_by_key(&piece.document, |long| long.document);
            document.is_err()
        };
        let left_out = (0..units).zip(&lengths).filter(|(_, length)| **length == 0);
        let untrained = left_out.filter(|(unit, _)| is_whole(*unit)).count() as u64;
        // An end alone, beyond the row, is no loss.
        let is_cut = |document: &&u64| cache.document(**document).len() > seq_length;
        Ok(Self {
            bins,
            long,
            untrained,
            cut: match split {
                true => 0,
                false => all_long.iter().filter(is_cut).count() as u64,
            },
            tokens: lengths.iter().map(|&length| u64::from(length)).sum(),
        })
    }

    pub(super) fn len(&self) -> u64 {
        self.bins.len() as u64
    }

    pub(super) fn untrained(&self) -> u64 {
        self.untrained
    }

    pub(super) fn cut(&self) -> u64 {
        self.cut
    }

    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The pieces of a row, in their order.
    pub(super) fn pieces(&self, row: u64, seq_length: usize) -> impl Iterator<Item = Piece> {
        let units = self.bins.items(row as usize).iter();
        units.map(move |&unit| piece_of(&self.long, u64::from(unit), seq_length))
    }
}

fn piece_of(long: &[Long], unit: u64, seq_length: usize) -> Piece {
    let after = long.partition_point(|long| long.first <= unit);
    let (document, piece) = match after.checked_sub(1).map(|last| long[last]) {
        None => (unit, 0),
        Some(last) if unit < last.first + last.pieces => (last.document, unit - last.first),
        Some(last) => (last.document + 1 + unit - last.first - last.pieces, 0),
    };
    Piece {
        document,
        start: piece as usize * seq_length,
    }
}

/// Tokens that follow a document.
fn end_of(cache: &TokenCache) -> usize {
    usize::from(cache.end_of_document().is_some())
}

/// The tokens of a piece, and the document's end where there is room for it.
pub(super) fn tokens_of(
    cache: &TokenCache,
    piece: Piece,
    seq_length: usize,
) -> impl Iterator<Item = Token> + Clone + use<'_> {
    let end = cache.end_of_document().map(Token::trained);
    let tokens = cache.document(piece.document).chain(end);
    tokens.skip(piece.start).take(seq_length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_by_their_number() {
        // Of seven documents, the second has three pieces and the third two.
        let long = [(1, 1, 3), (2, 4, 2)].map(|(document, first, pieces)| Long {
            document,
            first,
            pieces,
        });
        let found: Vec<(u64, usize)> = (0..10)
            .map(|unit| piece_of(&long, unit, 5))
            .map(|piece| (piece.document, piece.start))
            .collect();
        let expected = [
            (0, 0),
            (1, 0),
            (1, 5),
            (1, 10),
            (2, 0),
            (2, 5),
            (3, 0),
            (4, 0),
            (5, 0),
            (6, 0),
        ];
        assert_eq!(found, expected);
    }
}
