//! The ranks over which the experts of a mixture are spread.

use std::ops::Range;

use tandem_tensor::Tensor;

use crate::error::TpError;
use crate::pending_tensor::PendingTensor;

/// Ranks that together have each expert of a layer once and whole, in the order of the ranks (expert parallelism: GShard,
/// arXiv 2006.16668). Rows of tokens are sent to where their experts are, and what these make of them is sent back.
pub trait ExpertPeers {
    /// This rank among them.
    fn rank(&self) -> usize;

    /// For each rank, which of a layer's `experts` experts it has.
    fn shares(&self, experts: usize) -> Vec<Range<usize>>;

    /// Every rank's `own` numbers, of all ranks as many, in the order of the ranks.
    ///
    /// # Errors
    /// When a peer fails.
    fn gather_counts(&self, own: &[usize]) -> Result<Vec<Vec<usize>>, TpError>;

    /// Sends each rank its rows of `x [rows, features]`, which are in the order of the ranks, and returns those that the ranks have
    /// sent to this one, in their order. `counts[from * ranks + to]` are the rows from one to another; all pass the same.
    ///
    /// # Errors
    /// When a peer fails.
    fn exchange(&self, x: &Tensor, counts: &[usize]) -> Result<Tensor, TpError>;

    /// [`ExpertPeers::exchange`] that runs while the caller computes something else.
    ///
    /// # Errors
    /// When a peer fails.
    fn start_exchange(
        &self,
        x: &Tensor,
        counts: &[usize],
    ) -> Result<Box<dyn PendingTensor>, TpError>;
}
