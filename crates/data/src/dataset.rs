//! Rows of `seq_length` tokens, cut from a token cache when they are asked for.

use std::sync::Arc;

use crate::cache::{Token, TokenCache};
use crate::error::DatasetError;
use crate::example::ExampleKind;
use crate::label::IGNORED_LABEL;
use crate::search::partition_index;

/// Something that has rows of equal length.
pub trait Rows: Send + Sync {
    /// Rows there are.
    fn len(&self) -> u64;

    /// Whether there is no row at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of each row.
    fn seq_length(&self) -> usize;

    /// Writes row `sample`. The three slices have `seq_length` elements each, as described at [`crate::Batch`].
    fn fill(&self, sample: u64, input_ids: &mut [i64], labels: &mut [i64], mask: &mut [u8]);
}

/// The documents of a token cache as rows.
///
/// - **Packed**: the documents, each followed by EOS, are one stream of tokens that is cut into windows of `seq_length`;
///   what does not fill the last window is left out. Every position but a row's first is a target.
/// - **Not packed**: one document a row, followed by EOS where there is room for it, truncated to `seq_length`, padded on
///   the right with labels that the loss ignores. EOS is a target like any other token, also where it is the token that
///   pads. Documents without a target within `seq_length` have no row.
#[derive(Debug, Clone)]
pub struct TokenDataset {
    cache: Arc<TokenCache>,
    seq_length: usize,
    layout: Layout,
}

#[derive(Debug, Clone)]
enum Layout {
    Packed,
    /// `short` holds the documents without a row, in order: they are few, where an index of all rows would be large.
    Padded {
        short: Arc<[u64]>,
        /// Documents that are longer than a row.
        cut: u64,
    },
}

impl TokenDataset {
    /// The rows of `cache`, packed or one document each.
    ///
    /// # Errors
    /// No row at all; a `seq_length` below 2.
    pub fn new(
        cache: Arc<TokenCache>,
        seq_length: usize,
        packing: bool,
    ) -> Result<Self, DatasetError> {
        if seq_length < 2 {
            return Err(DatasetError::SeqLength { seq_length });
        }
        let layout = if packing {
            let (tokens, needed) = (cache.stream_len(), seq_length as u64);
            if tokens < needed {
                return Err(DatasetError::TooFewTokens {
                    tokens,
                    missing: needed - tokens,
                    seq_length,
                });
            }
            Layout::Packed
        } else {
            let documents = cache.documents();
            let end = cache.end_of_document().map(Token::trained);
            let has_target = |index: &u64| {
                let row = cache.document(*index).chain(end).take(seq_length);
                row.skip(1).any(Token::is_trained)
            };
            let short: Arc<[u64]> = (0..documents).filter(|index| !has_target(index)).collect();
            if short.len() as u64 == documents {
                return Err(DatasetError::NoTargets { documents });
            }
            let cut = (0..documents)
                .filter(|&index| cache.document(index).len() > seq_length)
                .count() as u64;
            Layout::Padded { short, cut }
        };
        Ok(Self {
            cache,
            seq_length,
            layout,
        })
    }

    /// What the documents were.
    pub fn kind(&self) -> ExampleKind {
        self.cache.kind()
    }

    /// What the rows depend on, as text: equal fingerprints have equal rows. A resumed run compares it.
    pub fn fingerprint(&self) -> String {
        // Rows that ended with the document's last token were "padded".
        let layout = match self.layout {
            Layout::Packed => "packed",
            Layout::Padded { .. } => "ended",
        };
        format!("{}-{layout}-{}", self.cache.key(), self.seq_length)
    }

    /// Documents whose ends no row has, because they are longer than one.
    pub fn cut_documents(&self) -> u64 {
        match self.layout {
            Layout::Packed => 0,
            Layout::Padded { cut, .. } => cut,
        }
    }

    /// Documents without a row, because no token of theirs in it would be trained.
    pub fn untrained_documents(&self) -> u64 {
        match &self.layout {
            Layout::Packed => 0,
            Layout::Padded { short, .. } => short.len() as u64,
        }
    }

    /// The document of row `sample`: as many further on as there are short ones before it.
    fn document_of(short: &[u64], sample: u64) -> u64 {
        // Before short[k] there are short[k] - k rows, and that does not fall with k.
        let before = partition_index(short.len(), |k| short[k] - k as u64 <= sample);
        sample + before as u64
    }
}

impl Rows for TokenDataset {
    fn len(&self) -> u64 {
        match &self.layout {
            Layout::Packed => self.cache.stream_len() / self.seq_length as u64,
            Layout::Padded { short, .. } => self.cache.documents() - short.len() as u64,
        }
    }

    fn seq_length(&self) -> usize {
        self.seq_length
    }

    fn fill(&self, sample: u64, input_ids: &mut [i64], labels: &mut [i64], mask: &mut [u8]) {
        match &self.layout {
            Layout::Packed => {
                let start = sample * self.seq_length as u64;
                self.cache.copy_stream(start, input_ids, labels);
                mask.fill(1);
            }
            Layout::Padded { short, .. } => {
                let document = self.cache.document(Self::document_of(short, sample));
                let end = self.cache.end_of_document().map(Token::trained);
                input_ids.fill(i64::from(self.cache.pad_id()));
                labels.fill(IGNORED_LABEL);
                mask.fill(0);
                for (place, token) in document.chain(end).take(self.seq_length).enumerate() {
                    input_ids[place] = i64::from(token.id());
                    labels[place] = token.label();
                    mask[place] = 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::{cache_of, ended_cache_of};
    use proptest::prelude::*;

    type Row = (Vec<i64>, Vec<i64>, Vec<u8>);

    fn rows(dataset: &TokenDataset) -> Vec<Row> {
        let seq = dataset.seq_length();
        (0..dataset.len())
            .map(|sample| {
                let (mut ids, mut labels, mut mask) = (vec![-1; seq], vec![-1; seq], vec![9; seq]);
                dataset.fill(sample, &mut ids, &mut labels, &mut mask);
                (ids, labels, mask)
            })
            .collect()
    }

    #[test]
    fn packing_joins_with_eos_and_drops_the_tail() {
        let cache = cache_of(&[&[5, 6, 7], &[8], &[9, 10]], 2);
        let rows = rows(&TokenDataset::new(cache, 4, true).unwrap());
        let expected: [&[i64]; 2] = [&[5, 6, 7, 2], &[8, 2, 9, 10]];
        assert_eq!(rows.len(), 2, "the last EOS does not fill a row");
        for ((ids, labels, mask), expected) in rows.iter().zip(expected) {
            assert_eq!(ids, expected);
            assert_eq!(labels, expected);
            assert_eq!(mask, &[1; 4]);
        }
    }

    #[test]
    fn without_packing_a_document_and_its_end_are_a_row() {
        let cache = cache_of(&[&[5, 6, 7, 8, 9], &[8], &[9, 10], &[1, 3, 4, 5]], 2);
        let dataset = TokenDataset::new(cache, 4, false).unwrap();
        assert_eq!(dataset.cut_documents(), 1);
        let rows = rows(&dataset);
        let none = IGNORED_LABEL;
        assert_eq!(
            rows,
            [
                (vec![5, 6, 7, 8], vec![5, 6, 7, 8], vec![1; 4]),
                (vec![8, 2, 2, 2], vec![8, 2, none, none], vec![1, 1, 0, 0]),
                (vec![9, 10, 2, 2], vec![9, 10, 2, none], vec![1, 1, 1, 0]),
                // No room for the end.
                (vec![1, 3, 4, 5], vec![1, 3, 4, 5], vec![1; 4]),
            ]
        );
    }

    #[test]
    fn documents_that_end_themselves_get_no_second_end() {
        let cache = ended_cache_of(&[&[5, 2], &[2], &[6, 7, 2]], 2);
        let rows = rows(&TokenDataset::new(cache, 4, false).unwrap());
        let none = IGNORED_LABEL;
        assert_eq!(
            rows,
            [
                (vec![5, 2, 2, 2], vec![5, 2, none, none], vec![1, 1, 0, 0]),
                (vec![6, 7, 2, 2], vec![6, 7, 2, none], vec![1, 1, 1, 0]),
            ],
            "an end alone has no target"
        );
    }

    #[test]
    fn datasets_without_rows_are_refused() {
        let cache = cache_of(&[&[5], &[6]], 2);
        let error = TokenDataset::new(cache.clone(), 6, true).unwrap_err();
        assert!(
            error.to_string().contains("4 tokens in all, 2 fewer"),
            "{error}"
        );
        let ends = ended_cache_of(&[&[2], &[2]], 2);
        let error = TokenDataset::new(ends, 6, false).unwrap_err();
        assert_eq!(error, DatasetError::NoTargets { documents: 2 });
        let error = TokenDataset::new(cache, 1, true).unwrap_err();
        assert_eq!(error, DatasetError::SeqLength { seq_length: 1 });
    }

    #[test]
    fn fingerprints_tell_rows_apart() {
        let cache = cache_of(&[&[5, 6, 7], &[8, 9, 10]], 2);
        let fingerprint = |seq_length, packing| {
            TokenDataset::new(cache.clone(), seq_length, packing)
                .unwrap()
                .fingerprint()
        };
        assert_eq!(fingerprint(4, true), fingerprint(4, true));
        assert_ne!(fingerprint(4, true), fingerprint(3, true));
        assert_ne!(fingerprint(4, true), fingerprint(4, false));
    }

    fn documents() -> impl Strategy<Value = Vec<Vec<u32>>> {
        prop::collection::vec(prop::collection::vec(3u32..100, 1..9), 1..20)
    }

    proptest! {
        // Each case writes a cache to disk.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn packed_rows_are_the_stream(documents in documents(), seq_length in 2usize..12) {
            let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
            let mut stream: Vec<i64> = Vec::new();
            for document in &documents {
                stream.extend(document.iter().map(|token| i64::from(*token)));
                stream.push(2);
            }
            prop_assume!(stream.len() >= seq_length);
            let dataset = TokenDataset::new(cache_of(&slices, 2), seq_length, true)?;
            let joined: Vec<i64> = rows(&dataset).into_iter().flat_map(|(ids, _, _)| ids).collect();
            stream.truncate(stream.len() / seq_length * seq_length);
            prop_assert_eq!(joined, stream);
        }

        #[test]
        fn padded_rows_are_the_documents(documents in documents(), seq_length in 2usize..12) {
            let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
            let expected: Vec<Vec<i64>> = documents.iter()
                .map(|document| document.iter().chain(&[2]).take(seq_length).map(|token| i64::from(*token)).collect())
                .collect();
            let dataset = TokenDataset::new(cache_of(&slices, 2), seq_length, false)?;
            for ((ids, labels, mask), expected) in rows(&dataset).into_iter().zip(&expected) {
                let kept: Vec<i64> = ids.iter().zip(&mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect();
                prop_assert_eq!(&kept, expected);
                prop_assert_eq!(labels.iter().filter(|label| **label != IGNORED_LABEL).count(), expected.len());
            }
            prop_assert_eq!(dataset.len() as usize, expected.len());
        }
    }
}
