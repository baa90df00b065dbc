//! Which rows of a global batch belong to which data parallel rank and micro-batch.

use std::ops::Range;

use thiserror::Error;

/// One data parallel rank's share of every global batch.
///
/// A global batch is `dp_size * micro_batches * batch_size` rows. Ranks take contiguous runs of it, in order, and so do
/// the micro-batches within a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// This rank in its data parallel group.
    pub dp_rank: usize,
    /// Ranks of the data parallel group.
    pub dp_size: usize,
    /// Rows of one micro-batch.
    pub batch_size: usize,
    /// Micro-batches of one optimizer step (`gradient_accumulation_steps`).
    pub micro_batches: usize,
}

/// A share that cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ShareError {
    /// Nothing times anything is nothing.
    #[error("{what} is 0: it must be at least 1")]
    Zero {
        /// The size in question.
        what: &'static str,
    },
    /// A rank that its group does not have.
    #[error("dp_rank {dp_rank} is outside a data parallel group of {dp_size}")]
    Rank {
        /// The rank.
        dp_rank: usize,
        /// Its group's size.
        dp_size: usize,
    },
    /// More rows than a number can hold.
    #[error(
        "a global batch of {dp_size} ranks x {micro_batches} micro-batches x {batch_size} rows is beyond counting"
    )]
    Overflow {
        /// Ranks.
        dp_size: usize,
        /// Micro-batches of a rank.
        micro_batches: usize,
        /// Rows of a micro-batch.
        batch_size: usize,
    },
}

impl Share {
    /// Checks sizes and rank.
    ///
    /// # Errors
    /// A size of zero, a rank outside its group, a product that overflows.
    pub fn checked(self) -> Result<Self, ShareError> {
        let sizes = [
            ("dp_size", self.dp_size),
            ("batch_size", self.batch_size),
            ("gradient_accumulation_steps", self.micro_batches),
        ];
        if let Some((what, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(ShareError::Zero { what });
        }
        if self.dp_rank >= self.dp_size {
            return Err(ShareError::Rank {
                dp_rank: self.dp_rank,
                dp_size: self.dp_size,
            });
        }
        let product = self
            .dp_size
            .checked_mul(self.micro_batches)
            .and_then(|micro_batches| micro_batches.checked_mul(self.batch_size));
        product.map(|_| self).ok_or(ShareError::Overflow {
            dp_size: self.dp_size,
            micro_batches: self.micro_batches,
            batch_size: self.batch_size,
        })
    }

    /// Rows of the global batch.
    pub fn global_batch(&self) -> usize {
        self.dp_size * self.micro_batches * self.batch_size
    }

    /// Rows of the global batch that micro-batch `index` of this rank has.
    pub fn rows(&self, index: usize) -> Range<usize> {
        let start = (self.dp_rank * self.micro_batches + index) * self.batch_size;
        start..start + self.batch_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_partition_the_global_batch(dp_size in 1usize..6, batch_size in 1usize..5, micro_batches in 1usize..5) {
            let mut rows = Vec::new();
            for dp_rank in 0..dp_size {
                let share = Share { dp_rank, dp_size, batch_size, micro_batches }.checked()?;
                rows.extend((0..micro_batches).flat_map(|index| share.rows(index)));
            }
            prop_assert_eq!(rows, (0..dp_size * batch_size * micro_batches).collect::<Vec<_>>());
        }
    }

    #[test]
    fn impossible_shares_are_refused() {
        let share = Share {
            dp_rank: 0,
            dp_size: 2,
            batch_size: 1,
            micro_batches: 1,
        };
        let zero = Share {
            micro_batches: 0,
            ..share
        };
        let message = zero.checked().unwrap_err().to_string();
        assert!(message.contains("gradient_accumulation_steps"), "{message}");
        let outside = Share {
            dp_rank: 2,
            ..share
        };
        assert_eq!(
            outside.checked(),
            Err(ShareError::Rank {
                dp_rank: 2,
                dp_size: 2
            })
        );
        let huge = Share {
            batch_size: usize::MAX,
            ..share
        };
        assert!(matches!(huge.checked(), Err(ShareError::Overflow { .. })));
    }
}
