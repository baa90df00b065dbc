//! Documents that lie in a row one after another and do not see each other.

use tandem_torch::{Device, Tensor};

/// Where the documents of rows of equal length begin.
#[derive(Debug)]
pub struct Documents {
    seq: usize,
    /// For each row, the first positions of its documents: 0, and further ones in ascending order.
    starts: Vec<Vec<u32>>,
    /// `[batch, seq]`: where the document of each position begins.
    of_position: Vec<u32>,
    /// Tokens of the longest document.
    longest: usize,
    /// On CUDA, i32 `[documents + 1]`: where the documents of all rows, one after another, begin, and where the last ends.
    bounds: Option<Tensor>,
}

impl Documents {
    /// Rows of `seq` tokens, whose documents begin at `starts`. What is behind a row's last document belongs to it: nothing
    /// that counts sees padding on the right.
    ///
    /// `None` where no row has more than one: causal attention says the same.
    ///
    /// # Panics
    /// When a row's starts do not begin with 0, do not ascend, or are beyond the row.
    pub fn new(starts: Vec<Vec<u32>>, seq: usize, device: Device) -> Option<Self> {
        let copy = |values: &[i32]| -> Result<_, std::convert::Infallible> {
            Ok(Tensor::from_slice(values).to_device(device))
        };
        let Ok(documents) = Self::copied(starts, seq, device.is_cuda().then_some(copy));
        documents
    }

    /// As [`Self::new`], with `copy`, where there is a device, for the way there.
    ///
    /// # Errors
    /// Those of `copy`.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn copied<E>(
        starts: Vec<Vec<u32>>,
        seq: usize,
        copy: Option<impl FnOnce(&[i32]) -> Result<Tensor, E>>,
    ) -> Result<Option<Self>, E> {
        for row in &starts {
            let ascends = row.windows(2).all(|pair| pair[0] < pair[1]);
            let inside = row.last().is_some_and(|&last| (last as usize) < seq);
            assert!(
                row.first() == Some(&0) && ascends && inside,
                "rows of {seq} tokens have no documents that begin at {row:?}"
            );
        }
        if starts.iter().all(|row| row.len() == 1) {
            return Ok(None);
        }
        let mut documents = Self {
            seq,
            starts,
            of_position: Vec::new(),
            longest: 0,
            bounds: None,
        };
        let lengths: Vec<(u32, usize)> = documents
            .each()
            .map(|(_, start, len)| (start as u32, len))
            .collect();
        for &(start, len) in &lengths {
            let filled = documents.of_position.len() + len;
            documents.of_position.resize(filled, start);
            documents.longest = documents.longest.max(len);
        }
        if let Some(copy) = copy {
            let mut bounds = vec![0i32];
            let mut end = 0;
            bounds.extend(lengths.iter().map(|(_, len)| {
                end += *len as i32;
                end
            }));
            documents.bounds = Some(copy(&bounds)?);
        }
        Ok(Some(documents))
    }

    /// Every document: its row, its first position and its tokens.
    pub(super) fn each(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        self.starts
            .iter()
            .enumerate()
            .flat_map(move |(row, starts)| {
                let ends = starts[1..].iter().map(|&end| end as usize);
                let ends = ends.chain([self.seq]);
                let starts = starts.iter().map(|&start| start as usize);
                starts
                    .zip(ends)
                    .map(move |(start, end)| (row, start, end - start))
            })
    }

    /// Rows and their tokens.
    pub(super) fn size(&self) -> [i64; 2] {
        [self.starts.len() as i64, self.seq as i64]
    }

    /// `[batch, seq]`: where the document of each position begins.
    pub(super) fn of_position(&self) -> &[u32] {
        &self.of_position
    }

    /// Tokens of the longest document.
    pub(super) fn longest(&self) -> i64 {
        self.longest as i64
    }

    /// On CUDA: see the field.
    pub(super) fn bounds(&self) -> Option<&Tensor> {
        self.bounds.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_the_start_of_its_document() {
        let starts = vec![vec![0, 1, 4], vec![0], vec![0, 2]];
        let documents = Documents::new(starts, 5, Device::Cpu).unwrap();
        assert_eq!(
            documents.of_position(),
            [0, 1, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2]
        );
        let each: Vec<_> = documents.each().collect();
        assert_eq!(
            each,
            [
                (0, 0, 1),
                (0, 1, 3),
                (0, 4, 1),
                (1, 0, 5),
                (2, 0, 2),
                (2, 2, 3)
            ]
        );
        assert_eq!(documents.longest(), 5);
        assert!(documents.bounds().is_none());
    }

    #[test]
    fn rows_of_one_document_need_no_mask() {
        assert!(Documents::new(vec![vec![0], vec![0]], 5, Device::Cpu).is_none());
    }

    #[test]
    #[should_panic(expected = "rows of 5 tokens have no documents that begin at [0, 5]")]
    fn documents_behind_the_row_are_noticed() {
        Documents::new(vec![vec![0, 5]], 5, Device::Cpu);
    }
}
