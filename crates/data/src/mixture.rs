//! Several datasets as one, mixed row by row.
//!
//! Without weights an epoch has every row of every dataset once. Weights are sampling proportions of rows, as the
//! `probabilities` of `datasets.interleave_datasets`, and an epoch ends when the first dataset would have to begin again
//! (`first_exhausted`): it is as long as it can be without a row that comes twice, and every dataset's part of it is exactly its
//! proportion, not left to chance. The others go on in the next epoch where they stopped, in an order of their own, so all of
//! their rows come before one comes again.

use std::sync::Arc;

use thiserror::Error;

use crate::dataset::{Rows, TokenDataset};
use crate::permutation::Permutation;
use crate::search::partition_index;

/// One dataset of a mixture.
#[derive(Debug, Clone)]
pub struct Part {
    /// What the user calls it.
    pub name: String,
    /// Its rows.
    pub dataset: Arc<TokenDataset>,
    /// Its part of the mixture relative to those of the others; above 0.
    pub weight: Option<f64>,
}

/// Why datasets cannot be mixed.
#[derive(Debug, Error, PartialEq)]
pub enum MixtureError {
    /// Nothing to mix.
    #[error("there is no dataset")]
    None,
    /// Proportions of some only.
    #[error(
        "dataset {without} has no weight, and dataset {with} has: give all of them one (NAME@WEIGHT), or none"
    )]
    SomeWeights {
        /// One with a weight.
        with: String,
        /// One without.
        without: String,
    },
    /// A number that is no proportion.
    #[error("dataset {name} has the weight {weight}: it must be above 0")]
    Weight {
        /// The dataset.
        name: String,
        /// Its weight.
        weight: f64,
    },
    /// So small a part that nothing is left of it.
    #[error(
        "dataset {name} has the weight {weight}, which is not one row of an epoch of {rows} rows: the smallest dataset for its \
         weight, {smallest}, decides how long an epoch is"
    )]
    NoRow {
        /// The dataset.
        name: String,
        /// Its weight.
        weight: f64,
        /// Rows of an epoch.
        rows: u64,
        /// The dataset that is exhausted first.
        smallest: String,
    },
}

/// The rows of several datasets. The order in an epoch is the sampler's.
#[derive(Debug, Clone)]
pub struct Mixture {
    parts: Vec<Part>,
    /// For each part, how many rows of an epoch are its own or of one before it.
    epoch_ends: Vec<u64>,
    /// For each part, how many rows it and those before it have.
    ends: Vec<u64>,
    seed: u64,
}

impl Mixture {
    /// Mixes datasets of rows of equal length. `seed` decides which rows of a dataset an epoch has, where it has not all.
    ///
    /// # Errors
    /// Weights that are no proportions.
    ///
    /// # Panics
    /// When rows differ in length.
    pub fn new(parts: Vec<Part>, seed: u64) -> Result<Self, MixtureError> {
        let first = parts.first().ok_or(MixtureError::None)?;
        let seq_length = first.dataset.seq_length();
        assert!(
            parts
                .iter()
                .all(|part| part.dataset.seq_length() == seq_length)
        );
        let counts = rows_of_an_epoch(&parts)?;
        let sums = |counts: Vec<u64>| {
            let sum = |sum: &mut u64, count| {
                *sum += count;
                Some(*sum)
            };
            counts.into_iter().scan(0, sum).collect()
        };
        Ok(Self {
            epoch_ends: sums(counts),
            ends: sums(parts.iter().map(|part| part.dataset.len()).collect()),
            parts,
            seed,
        })
    }

    /// The datasets.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Rows of an epoch that are of the part `index`.
    pub fn epoch_rows(&self, index: usize) -> u64 {
        self.epoch_ends[index] - start(&self.epoch_ends, index)
    }

    /// Rows of all datasets, of which an epoch may have fewer.
    pub fn all_rows(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    /// What the rows depend on, as text; see [`TokenDataset::fingerprint`].
    pub fn fingerprint(&self) -> String {
        let of_part = |part: &Part| match part.weight {
            Some(weight) if self.parts.len() > 1 => {
                format!("{}@{weight}", part.dataset.fingerprint())
            }
            _ => part.dataset.fingerprint(),
        };
        self.parts.iter().map(of_part).collect::<Vec<_>>().join("+")
    }

    /// The dataset that has a row, and the row's number in it.
    fn part_of(&self, row: u64) -> (&TokenDataset, u64) {
        let index = part_at(&self.ends, row);
        let local = row - start(&self.ends, index);
        (&self.parts[index].dataset, local)
    }
}

impl Rows for Mixture {
    fn len(&self) -> u64 {
        self.epoch_ends.last().copied().unwrap_or_default()
    }

    fn seq_length(&self) -> usize {
        self.parts[0].dataset.seq_length()
    }

    fn row_at(&self, epoch: u64, sample: u64) -> u64 {
        let index = part_at(&self.epoch_ends, sample);
        let (base, len) = (start(&self.ends, index), self.parts[index].dataset.len());
        let (count, place) = (
            self.epoch_rows(index),
            sample - start(&self.epoch_ends, index),
        );
        if count == len {
            return base + place;
        }
        // As if all epochs' parts were one list, in which the dataset comes again and again.
        let place = u128::from(epoch) * u128::from(count) + u128::from(place);
        let (round, place) = (place / u128::from(len), place % u128::from(len));
        let seed = self.seed.wrapping_add(index as u64 + 1);
        base + Permutation::new(len, seed, round as u64).at(place as u64)
    }

    fn documents(&self, row: u64) -> Vec<u32> {
        let (dataset, row) = self.part_of(row);
        dataset.documents(row)
    }

    fn fill(&self, row: u64, input_ids: &mut [i64], labels: &mut [i64], mask: &mut [u8]) {
        let (dataset, row) = self.part_of(row);
        dataset.fill(row, input_ids, labels, mask);
    }
}

/// Which part has number `at`, where each ends before a number.
fn part_at(ends: &[u64], at: u64) -> usize {
    partition_index(ends.len(), |part| ends[part] <= at)
}

fn start(ends: &[u64], index: usize) -> u64 {
    index.checked_sub(1).map_or(0, |before| ends[before])
}

fn rows_of_an_epoch(parts: &[Part]) -> Result<Vec<u64>, MixtureError> {
    let weighted = parts.iter().find(|part| part.weight.is_some());
    let Some(weighted) = weighted.filter(|_| parts.len() > 1) else {
        return Ok(parts.iter().map(|part| part.dataset.len()).collect());
    };
    let mut weights = Vec::with_capacity(parts.len());
    for part in parts {
        let weight = part.weight.ok_or_else(|| MixtureError::SomeWeights {
            with: weighted.name.clone(),
            without: part.name.clone(),
        })?;
        if !(weight > 0.0 && weight.is_finite()) {
            return Err(MixtureError::Weight {
                name: part.name.clone(),
                weight,
            });
        }
        weights.push(weight);
    }
    let lengths: Vec<u64> = parts.iter().map(|part| part.dataset.len()).collect();
    let (smallest, counts) = shares(&lengths, &weights);
    if let Some(none) = counts.iter().position(|&count| count == 0) {
        return Err(MixtureError::NoRow {
            name: parts[none].name.clone(),
            weight: weights[none],
            rows: counts.iter().sum(),
            smallest: parts[smallest].name.clone(),
        });
    }
    Ok(counts)
}

/// The dataset that is exhausted first, all rows of which an epoch has; and how many rows it has of each.
fn shares(lengths: &[u64], weights: &[f64]) -> (usize, Vec<u64>) {
    // Rows for a weight of 1.
    let room = |index: &usize| lengths[*index] as f64 / weights[*index];
    let smallest = (0..lengths.len())
        .min_by(|a, b| room(a).total_cmp(&room(b)))
        .unwrap_or_default();
    let unit = room(&smallest);
    let counts = lengths
        .iter()
        .zip(weights)
        .enumerate()
        .map(|(index, (&length, weight))| {
            if index == smallest {
                return length;
            }
            ((unit * weight).round() as u64).min(length)
        });
    (smallest, counts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::cache_of;
    use crate::row_layout::RowLayout;
    use std::collections::BTreeMap;

    /// So many rows, each of its own first token from `first` on.
    fn part(name: &str, rows: u32, first: u32, weight: Option<f64>) -> Part {
        let documents: Vec<Vec<u32>> = (first..first + rows).map(|token| vec![token, 3]).collect();
        let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
        let dataset = TokenDataset::new(cache_of(&slices, 2), 3, RowLayout::PADDED).unwrap();
        Part {
            name: name.into(),
            dataset: Arc::new(dataset),
            weight,
        }
    }

    fn epoch(mixture: &Mixture, epoch: u64) -> Vec<i64> {
        let row = |sample| {
            let (mut ids, mut labels, mut mask) = ([0; 3], [0; 3], [0; 3]);
            let row = mixture.row_at(epoch, sample);
            mixture.fill(row, &mut ids, &mut labels, &mut mask);
            assert_eq!(mixture.documents(row), [0]);
            ids[0]
        };
        (0..mixture.len()).map(row).collect()
    }

    #[test]
    fn without_weights_an_epoch_has_all_rows() {
        let parts = vec![part("a", 3, 10, None), part("b", 2, 20, None)];
        let mixture = Mixture::new(parts, 7).unwrap();
        for number in 0..3 {
            assert_eq!(epoch(&mixture, number), [10, 11, 12, 20, 21]);
        }
    }

    #[test]
    fn a_single_dataset_is_what_it_is_alone() {
        let one = part("a", 3, 10, Some(0.2));
        let fingerprint = one.dataset.fingerprint();
        let mixture = Mixture::new(vec![one], 7).unwrap();
        assert_eq!(epoch(&mixture, 1), [10, 11, 12]);
        assert_eq!(mixture.fingerprint(), fingerprint);
    }

    /// 20 rows at 1 : 3 with 12: the second decides. The first has 4 rows of every epoch, and all of its 20 in five.
    #[test]
    fn weights_are_proportions_and_no_row_comes_again_before_the_others() {
        let parts = vec![
            part("a", 20, 100, Some(0.25)),
            part("b", 12, 500, Some(0.75)),
        ];
        let mixture = Mixture::new(parts, 7).unwrap();
        assert_eq!((mixture.len(), mixture.all_rows()), (16, 32));
        assert_eq!((mixture.epoch_rows(0), mixture.epoch_rows(1)), (4, 12));
        let mut seen: BTreeMap<i64, u32> = BTreeMap::new();
        for number in 0..5 {
            let rows = epoch(&mixture, number);
            assert_eq!(rows[4..], (500..512).collect::<Vec<_>>());
            rows.iter()
                .for_each(|row| *seen.entry(*row).or_default() += 1);
        }
        let all: Vec<(i64, u32)> = (100..120).map(|row| (row, 1)).collect();
        assert_eq!(seen.into_iter().take(20).collect::<Vec<_>>(), all);
        assert_eq!(epoch(&mixture, 3), epoch(&mixture.clone(), 3));
        assert_ne!(epoch(&mixture, 5), epoch(&mixture, 0), "another order");
    }

    #[test]
    fn weights_that_are_no_proportions_are_refused() {
        let error = |a, b| {
            let parts = vec![part("a", 3, 10, a), part("b", 2, 20, b)];
            Mixture::new(parts, 7).unwrap_err().to_string()
        };
        let text = error(Some(1.0), None);
        assert!(
            text.contains("dataset b has no weight, and dataset a has"),
            "{text}"
        );
        let text = error(Some(1.0), Some(-2.0));
        assert!(text.contains("weight -2: it must be above 0"), "{text}");
        let text = error(Some(1e-9), Some(1.0));
        assert!(
            text.contains("a has the weight 0.000000001") && text.contains("2 rows"),
            "{text}"
        );
        assert_eq!(Mixture::new(Vec::new(), 7).unwrap_err(), MixtureError::None);
    }
}
