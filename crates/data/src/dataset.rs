//! Rows of `seq_length` tokens, cut from a token cache when they are asked for.

mod best_fit;
mod bins;

use std::sync::Arc;

use crate::cache::{Token, TokenCache};
use crate::error::DatasetError;
use crate::example::ExampleKind;
use crate::label::IGNORED_LABEL;
use crate::row_layout::{Packing, RowLayout};
use crate::search::partition_index;
use best_fit::{BestFitRows, tokens_of};

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

    /// The row that is sample number `sample` of an epoch, where not all epochs have the same rows.
    fn row_at(&self, epoch: u64, sample: u64) -> u64 {
        let _ = epoch;
        sample
    }

    /// Where the documents of a row begin: 0, and in ascending order further ones that see nothing of those before them.
    fn documents(&self, row: u64) -> Vec<u32> {
        let _ = row;
        vec![0]
    }

    /// Writes a row. The three slices have `seq_length` elements each, as described at [`crate::Batch`].
    fn fill(&self, row: u64, input_ids: &mut [i64], labels: &mut [i64], mask: &mut [u8]);
}

/// The documents of a token cache as rows, as [`RowLayout`] says.
///
/// - **Wrapped**: the documents, each followed by EOS, are one stream of tokens that is cut into windows of `seq_length`;
///   what does not fill the last window is left out. Every position but a row's first is a target.
/// - **Best-fit decreasing**: as many whole documents in a row as fit, each followed by EOS where there is room for it. Those
///   without a target are in no row.
/// - **Not packed**: one document a row, followed by EOS where there is room for it, truncated to `seq_length`. Documents without
///   a target within `seq_length` have no row.
///
/// Rows that are not full are padded on the right, with labels that the loss ignores. EOS is a target like any other token, also
/// where it is the token that pads. Which rows there are depends on the documents alone, not on the seed.
#[derive(Debug, Clone)]
pub struct TokenDataset {
    cache: Arc<TokenCache>,
    seq_length: usize,
    document_mask: bool,
    layout: Layout,
}

#[derive(Debug, Clone)]
enum Layout {
    Wrapped,
    BestFit {
        rows: Arc<BestFitRows>,
        split: bool,
    },
    /// `short` holds the documents without a row, in order: they are few, where an index of all rows would be large.
    Padded {
        short: Arc<[u64]>,
        /// Documents that are longer than a row.
        cut: u64,
    },
}

impl TokenDataset {
    /// The rows of `cache`.
    ///
    /// # Errors
    /// No row at all; a `seq_length` below 2.
    pub fn new(
        cache: Arc<TokenCache>,
        seq_length: usize,
        layout: RowLayout,
    ) -> Result<Self, DatasetError> {
        if seq_length < 2 || u32::try_from(seq_length).is_err() {
            return Err(DatasetError::SeqLength { seq_length });
        }
        let RowLayout {
            packing,
            document_mask,
        } = layout;
        let layout = match packing {
            None => padded(&cache, seq_length)?,
            Some(Packing::Wrapped) => wrapped(&cache, seq_length)?,
            Some(strategy) => {
                let split = strategy == Packing::BestFitSplit;
                let rows = Arc::new(BestFitRows::new(&cache, seq_length, split)?);
                Layout::BestFit { rows, split }
            }
        };
        Ok(Self {
            cache,
            seq_length,
            document_mask: document_mask && packing.is_some(),
            layout,
        })
    }

    /// What the documents were.
    pub fn kind(&self) -> ExampleKind {
        self.cache.kind()
    }

    /// The tokens.
    pub fn cache(&self) -> &TokenCache {
        &self.cache
    }

    /// What the rows depend on, as text: equal fingerprints have equal rows. A resumed run compares it.
    pub fn fingerprint(&self) -> String {
        // Rows that ended with the document's last token were "padded".
        let layout = match self.layout {
            Layout::Wrapped => "packed",
            Layout::BestFit { split: false, .. } => "bfd",
            Layout::BestFit { split: true, .. } => "bfd_split",
            Layout::Padded { .. } => "ended",
        };
        let mask = if self.document_mask { "-masked" } else { "" };
        format!("{}-{layout}{mask}-{}", self.cache.key(), self.seq_length)
    }

    /// Documents whose ends no row has, because they are longer than one.
    pub fn cut_documents(&self) -> u64 {
        match &self.layout {
            Layout::Wrapped => 0,
            Layout::BestFit { rows, .. } => rows.cut(),
            Layout::Padded { cut, .. } => *cut,
        }
    }

    /// Documents without a row, because no token of theirs in it would be trained.
    pub fn untrained_documents(&self) -> u64 {
        match &self.layout {
            Layout::Wrapped => 0,
            Layout::BestFit { rows, .. } => rows.untrained(),
            Layout::Padded { short, .. } => short.len() as u64,
        }
    }

    /// Of the tokens that best-fit rows have room for, the share that is padding.
    pub fn padding(&self) -> Option<f64> {
        let Layout::BestFit { rows, .. } = &self.layout else {
            return None;
        };
        let room = rows.len() as f64 * self.seq_length as f64;
        Some(1.0 - rows.tokens() as f64 / room)
    }

    /// The document of row `sample`: as many further on as there are short ones before it.
    fn document_of(short: &[u64], sample: u64) -> u64 {
        // Before short[k] there are short[k] - k rows, and that does not fall with k.
        let before = partition_index(short.len(), |k| short[k] - k as u64 <= sample);
        sample + before as u64
    }
}

fn wrapped(cache: &TokenCache, seq_length: usize) -> Result<Layout, DatasetError> {
    let (tokens, needed) = (cache.stream_len(), seq_length as u64);
    if tokens < needed {
        return Err(DatasetError::TooFewTokens {
            tokens,
            missing: needed - tokens,
            seq_length,
        });
    }
    Ok(Layout::Wrapped)
}

fn padded(cache: &TokenCache, seq_length: usize) -> Result<Layout, DatasetError> {
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
    Ok(Layout::Padded { short, cut })
}

/// A row that is being filled.
struct Filling<'a> {
    input_ids: &'a mut [i64],
    labels: &'a mut [i64],
    mask: &'a mut [u8],
    filled: usize,
}

impl<'a> Filling<'a> {
    fn new(
        input_ids: &'a mut [i64],
        labels: &'a mut [i64],
        mask: &'a mut [u8],
        pad_id: u32,
    ) -> Self {
        input_ids.fill(i64::from(pad_id));
        labels.fill(IGNORED_LABEL);
        mask.fill(0);
        Self {
            input_ids,
            labels,
            mask,
            filled: 0,
        }
    }

    /// Appends tokens, as far as there is room.
    fn push(&mut self, tokens: impl Iterator<Item = Token>) {
        let room = self.filled..self.input_ids.len();
        for (place, token) in room.zip(tokens) {
            self.input_ids[place] = i64::from(token.id());
            self.labels[place] = token.label();
            self.mask[place] = 1;
            self.filled += 1;
        }
    }
}

impl Rows for TokenDataset {
    fn len(&self) -> u64 {
        match &self.layout {
            Layout::Wrapped => self.cache.stream_len() / self.seq_length as u64,
            Layout::BestFit { rows, .. } => rows.len(),
            Layout::Padded { short, .. } => self.cache.documents() - short.len() as u64,
        }
    }

    fn seq_length(&self) -> usize {
        self.seq_length
    }

    fn documents(&self, row: u64) -> Vec<u32> {
        let seq = self.seq_length;
        match &self.layout {
            _ if !self.document_mask => vec![0],
            Layout::Wrapped => self.cache.stream_starts(row * seq as u64, seq),
            Layout::BestFit { rows, .. } => {
                let pieces = rows.pieces(row, seq);
                let starts = pieces.scan(0, |next, piece| {
                    let start = *next;
                    *next += tokens_of(&self.cache, piece, seq).count() as u32;
                    Some(start)
                });
                starts.collect()
            }
            Layout::Padded { .. } => vec![0],
        }
    }

    fn fill(&self, row: u64, input_ids: &mut [i64], labels: &mut [i64], mask: &mut [u8]) {
        let (cache, seq) = (&*self.cache, self.seq_length);
        match &self.layout {
            Layout::Wrapped => {
                cache.copy_stream(row * seq as u64, input_ids, labels);
                mask.fill(1);
            }
            Layout::BestFit { rows, .. } => {
                let mut filling = Filling::new(input_ids, labels, mask, cache.pad_id());
                for piece in rows.pieces(row, seq) {
                    filling.push(tokens_of(cache, piece, seq));
                }
            }
            Layout::Padded { short, .. } => {
                let document = cache.document(Self::document_of(short, row));
                let end = cache.end_of_document().map(Token::trained);
                Filling::new(input_ids, labels, mask, cache.pad_id()).push(document.chain(end));
            }
        }
        if self.document_mask {
            // Nothing that its document has predicts it.
            for start in self.documents(row) {
                labels[start as usize] = IGNORED_LABEL;
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
        let rows = rows(&TokenDataset::new(cache, 4, RowLayout::WRAPPED).unwrap());
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
        let dataset = TokenDataset::new(cache, 4, RowLayout::PADDED).unwrap();
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
        let rows = rows(&TokenDataset::new(cache, 4, RowLayout::PADDED).unwrap());
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
        let error = TokenDataset::new(cache.clone(), 6, RowLayout::WRAPPED).unwrap_err();
        assert!(
            error.to_string().contains("4 tokens in all, 2 fewer"),
            "{error}"
        );
        let ends = ended_cache_of(&[&[2], &[2]], 2);
        let error = TokenDataset::new(ends, 6, RowLayout::PADDED).unwrap_err();
        assert_eq!(error, DatasetError::NoTargets { documents: 2 });
        let error = TokenDataset::new(cache, 1, RowLayout::WRAPPED).unwrap_err();
        assert_eq!(error, DatasetError::SeqLength { seq_length: 1 });
    }

    #[test]
    fn fingerprints_tell_rows_apart() {
        let cache = cache_of(&[&[5, 6, 7], &[8, 9, 10]], 2);
        let fingerprint = |seq_length, packing, document_mask| {
            let layout = RowLayout {
                packing,
                document_mask,
            };
            TokenDataset::new(cache.clone(), seq_length, layout)
                .unwrap()
                .fingerprint()
        };
        let wrapped = Some(Packing::Wrapped);
        let one = fingerprint(4, wrapped, false);
        assert_eq!(one, fingerprint(4, wrapped, false));
        let mut all = vec![one, fingerprint(3, wrapped, false)];
        for packing in [Some(Packing::BestFit), Some(Packing::BestFitSplit)] {
            all.extend([false, true].map(|mask| fingerprint(4, packing, mask)));
        }
        all.push(fingerprint(4, wrapped, true));
        all.push(fingerprint(4, None, false));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        // There is nothing to mask.
        assert_eq!(fingerprint(4, None, true), fingerprint(4, None, false));
    }

    const BEST_FIT: RowLayout = RowLayout {
        packing: Some(Packing::BestFit),
        document_mask: true,
    };

    #[test]
    fn best_fit_rows_have_whole_documents_that_do_not_see_each_other() {
        let none = IGNORED_LABEL;
        let cache = cache_of(
            &[&[5, 6], &[7, 8, 9, 10, 11, 12, 13], &[14, 15, 16], &[17]],
            2,
        );
        let dataset = TokenDataset::new(cache, 6, BEST_FIT).unwrap();
        assert_eq!(
            (dataset.cut_documents(), dataset.untrained_documents()),
            (1, 0)
        );
        let rows = rows(&dataset);
        assert_eq!(
            rows,
            [
                (
                    vec![7, 8, 9, 10, 11, 12],
                    vec![none, 8, 9, 10, 11, 12],
                    vec![1; 6]
                ),
                (
                    vec![14, 15, 16, 2, 17, 2],
                    vec![none, 15, 16, 2, none, 2],
                    vec![1; 6]
                ),
                (
                    vec![5, 6, 2, 2, 2, 2],
                    vec![none, 6, 2, none, none, none],
                    vec![1, 1, 1, 0, 0, 0]
                ),
            ]
        );
        let starts: Vec<Vec<u32>> = (0..3).map(|row| dataset.documents(row)).collect();
        assert_eq!(starts, [vec![0], vec![0, 4], vec![0]]);
        let padding = dataset.padding().unwrap();
        assert!((padding - 3.0 / 18.0).abs() < 1e-9, "{padding}");
    }

    #[test]
    fn documents_of_a_wrapped_row_begin_behind_the_end_of_the_one_before() {
        let none = IGNORED_LABEL;
        let layout = RowLayout {
            document_mask: true,
            ..RowLayout::WRAPPED
        };
        // 5 6 7 2 | 8 2 9 2 | 10 2
        let cache = cache_of(&[&[5, 6, 7], &[8], &[9], &[10]], 2);
        let dataset = TokenDataset::new(cache, 5, layout).unwrap();
        let starts: Vec<Vec<u32>> = (0..2).map(|row| dataset.documents(row)).collect();
        assert_eq!(starts, [vec![0, 4], vec![0, 1, 3]]);
        let labels: Vec<Vec<i64>> = rows(&dataset)
            .into_iter()
            .map(|(_, labels, _)| labels)
            .collect();
        assert_eq!(labels, [[none, 6, 7, 2, none], [none, none, 2, none, 2]]);
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
            let dataset = TokenDataset::new(cache_of(&slices, 2), seq_length, RowLayout::WRAPPED)?;
            let joined: Vec<i64> = rows(&dataset).into_iter().flat_map(|(ids, _, _)| ids).collect();
            stream.truncate(stream.len() / seq_length * seq_length);
            prop_assert_eq!(joined, stream);
        }

        /// No document is cut unless it is longer than a row, and every token is in one row.
        #[test]
        fn best_fit_rows_have_every_token_once(
            documents in documents(), seq_length in 2usize..12, split: bool, ended: bool,
        ) {
            let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
            let cache = if ended { ended_cache_of(&slices, 2) } else { cache_of(&slices, 2) };
            let packing = Some(if split { Packing::BestFitSplit } else { Packing::BestFit });
            let dataset = TokenDataset::new(cache, seq_length, RowLayout { packing, document_mask: true });
            let mut expected: Vec<Vec<i64>> = Vec::new();
            for document in &documents {
                let end: &[u32] = if ended { &[] } else { &[2] };
                let whole: Vec<i64> = document.iter().chain(end).map(|token| i64::from(*token)).collect();
                let pieces = whole.chunks(seq_length).take(if split { usize::MAX } else { 1 });
                // A token alone has nothing to be predicted from.
                expected.extend(pieces.filter(|piece| piece.len() > 1).map(<[i64]>::to_vec));
            }
            if expected.is_empty() {
                prop_assert!(dataset.is_err());
                return Ok(());
            }
            let dataset = dataset?;
            let mut found = Vec::new();
            for (row, (ids, labels, mask)) in (0..).zip(rows(&dataset)) {
                let tokens = mask.iter().filter(|is| **is == 1).count();
                let starts = dataset.documents(row);
                let ends = starts[1..].iter().map(|end| *end as usize).chain([tokens]);
                for (start, end) in starts.iter().map(|start| *start as usize).zip(ends) {
                    prop_assert_eq!(labels[start], IGNORED_LABEL);
                    prop_assert_eq!(&labels[start + 1..end], &ids[start + 1..end]);
                    found.push(ids[start..end].to_vec());
                }
                prop_assert!(labels[tokens..].iter().all(|label| *label == IGNORED_LABEL));
            }
            found.sort();
            expected.sort();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn padded_rows_are_the_documents(documents in documents(), seq_length in 2usize..12) {
            let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
            let expected: Vec<Vec<i64>> = documents.iter()
                .map(|document| document.iter().chain(&[2]).take(seq_length).map(|token| i64::from(*token)).collect())
                .collect();
            let dataset = TokenDataset::new(cache_of(&slices, 2), seq_length, RowLayout::PADDED)?;
            for ((ids, labels, mask), expected) in rows(&dataset).into_iter().zip(&expected) {
                let kept: Vec<i64> = ids.iter().zip(&mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect();
                prop_assert_eq!(&kept, expected);
                prop_assert_eq!(labels.iter().filter(|label| **label != IGNORED_LABEL).count(), expected.len());
            }
            prop_assert_eq!(dataset.len() as usize, expected.len());
        }
    }
}
