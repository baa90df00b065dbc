//! Where a sharded module meets its peers.

use tandem_tensor::Tensor;

use crate::error::TpError;
use crate::expert_peers::ExpertPeers;
use crate::pending_tensor::PendingTensor;

/// The conversations of a tensor parallel layer (Megatron-LM, arXiv 1909.08053, and its sequence parallel form,
/// arXiv 2205.05198).
///
/// "This rank's tokens" are all tokens, unless the context is sequence parallel: then the residual stream is cut over
/// the ranks by token, and the two reductions become reduce-scatters.
pub trait TpContext {
    /// From this rank's tokens `[local, features]` to all tokens `[tokens, features]`.
    ///
    /// # Errors
    /// When a peer fails.
    fn gather_tokens(&self, local: &Tensor) -> Result<Tensor, TpError>;

    /// Sums the partial `[tokens, features]` of all ranks and keeps this rank's tokens.
    ///
    /// # Errors
    /// When a peer fails.
    fn reduce_tokens(&self, partial: Tensor) -> Result<Tensor, TpError>;

    /// [`TpContext::reduce_tokens`] that runs while the caller computes something else.
    ///
    /// # Errors
    /// When a peer fails.
    fn start_reduce_tokens(&self, partial: Tensor) -> Result<Box<dyn PendingTensor>, TpError>;

    /// Of all tokens `[tokens, features]`, this rank's.
    fn own_tokens(&self, all: Tensor) -> Tensor;

    /// From this rank's tokens `[local, features]` to its share of the row's: the same where tokens are cut over the row, and
    /// otherwise a part of those that all ranks of it have.
    fn share_tokens(&self, own: &Tensor) -> Tensor;

    /// The reverse of [`TpContext::share_tokens`], which runs while the caller computes something else.
    ///
    /// # Errors
    /// When a peer fails.
    fn start_join_shares(&self, share: Tensor) -> Result<Box<dyn PendingTensor>, TpError>;

    /// The ranks over which experts are spread, where they are.
    fn expert_peers(&self) -> Option<&dyn ExpertPeers>;

    /// Sums the small fp32 tensor `partial`, in place, over all ranks: numbers of all tokens, which every rank sees.
    ///
    /// # Errors
    /// When a peer fails.
    fn sum_over_row(&self, partial: &Tensor) -> Result<(), TpError>;

    /// Every rank's `stats`, stacked in rank order along a new first dimension.
    ///
    /// # Errors
    /// When a peer fails.
    fn gather_stats(&self, stats: &Tensor) -> Result<Tensor, TpError>;
}

/// One rank holds the whole model: nothing to say to anyone.
#[derive(Debug, Clone, Copy, Default)]
pub struct SingleRank;

impl TpContext for SingleRank {
    fn gather_tokens(&self, local: &Tensor) -> Result<Tensor, TpError> {
        Ok(local.shallow_clone())
    }

    fn reduce_tokens(&self, partial: Tensor) -> Result<Tensor, TpError> {
        Ok(partial)
    }

    fn start_reduce_tokens(&self, partial: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        Ok(Box::new(partial))
    }

    fn own_tokens(&self, all: Tensor) -> Tensor {
        all
    }

    fn share_tokens(&self, own: &Tensor) -> Tensor {
        own.shallow_clone()
    }

    fn start_join_shares(&self, share: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        Ok(Box::new(share))
    }

    fn expert_peers(&self) -> Option<&dyn ExpertPeers> {
        None
    }

    fn sum_over_row(&self, _partial: &Tensor) -> Result<(), TpError> {
        Ok(())
    }

    fn gather_stats(&self, stats: &Tensor) -> Result<Tensor, TpError> {
        Ok(stats.unsqueeze(0))
    }
}

/// The row as a block sees it that every rank computes whole: there is nothing to add up, and each keeps its own tokens.
pub(crate) struct WholeBlock<'a>(pub(crate) &'a dyn TpContext);

impl TpContext for WholeBlock<'_> {
    fn gather_tokens(&self, local: &Tensor) -> Result<Tensor, TpError> {
        self.0.gather_tokens(local)
    }

    fn reduce_tokens(&self, whole: Tensor) -> Result<Tensor, TpError> {
        Ok(self.own_tokens(whole))
    }

    fn start_reduce_tokens(&self, whole: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        Ok(Box::new(self.own_tokens(whole)))
    }

    fn own_tokens(&self, all: Tensor) -> Tensor {
        self.0.own_tokens(all)
    }

    fn share_tokens(&self, own: &Tensor) -> Tensor {
        self.0.share_tokens(own)
    }

    fn start_join_shares(&self, share: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        self.0.start_join_shares(share)
    }

    fn expert_peers(&self) -> Option<&dyn ExpertPeers> {
        self.0.expert_peers()
    }

    fn sum_over_row(&self, _whole: &Tensor) -> Result<(), TpError> {
        Ok(())
    }

    fn gather_stats(&self, stats: &Tensor) -> Result<Tensor, TpError> {
        Ok(stats.unsqueeze(0))
    }
}

/// The row as a block sees it of which each rank computes all for its share of the tokens, a mixture whose experts are spread.
pub(crate) struct Shares<'a>(pub(crate) &'a dyn TpContext);

impl TpContext for Shares<'_> {
    fn gather_tokens(&self, own: &Tensor) -> Result<Tensor, TpError> {
        Ok(self.0.share_tokens(own))
    }

    fn reduce_tokens(&self, share: Tensor) -> Result<Tensor, TpError> {
        self.0.start_join_shares(share)?.wait()
    }

    fn start_reduce_tokens(&self, share: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        self.0.start_join_shares(share)
    }

    fn own_tokens(&self, all: Tensor) -> Tensor {
        self.0.own_tokens(all)
    }

    fn share_tokens(&self, own: &Tensor) -> Tensor {
        self.0.share_tokens(own)
    }

    fn start_join_shares(&self, share: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        self.0.start_join_shares(share)
    }

    fn expert_peers(&self) -> Option<&dyn ExpertPeers> {
        self.0.expert_peers()
    }

    fn sum_over_row(&self, partial: &Tensor) -> Result<(), TpError> {
        self.0.sum_over_row(partial)
    }

    fn gather_stats(&self, stats: &Tensor) -> Result<Tensor, TpError> {
        self.0.gather_stats(stats)
    }
}
