//! The tensor parallel row as the modules see it: each conversation is one collective.

use std::ops::Range;
use std::sync::Arc;

use tandem_comm::{ProcessGroup, ReduceOp, Work};
use tandem_mesh::partition;
use tandem_model::{ExpertPeers, PendingTensor, TpContext, TpError};
use tandem_tensor::Tensor;

use crate::error::tp_error;
use crate::expert_group::ExpertGroup;
use crate::pending::Joining;

/// A row of the mesh.
#[derive(Clone)]
pub struct TpGroup {
    /// The row's process group.
    pub group: Arc<dyn ProcessGroup>,
    /// Cut the residual stream over the row by token (arXiv 2205.05198).
    pub sequence_parallel: bool,
    /// The ranks over which experts are spread, where they are.
    pub experts: Option<Arc<ExpertGroup>>,
}

/// The row, for micro-batches of a known number of tokens.
pub struct TpTokens {
    group: Arc<dyn ProcessGroup>,
    /// Whether the residual stream is cut over the row by token.
    cuts_tokens: bool,
    /// Tokens per rank where it is.
    counts: Vec<usize>,
    experts: Option<Arc<ExpertGroup>>,
}

impl TpGroup {
    /// The conversations over `tokens` tokens.
    pub fn for_tokens(&self, tokens: usize) -> TpTokens {
        let size = self.group.size();
        TpTokens {
            group: Arc::clone(&self.group),
            cuts_tokens: self.sequence_parallel && size > 1,
            counts: (0..size)
                .map(|rank| partition(tokens, size, rank).len())
                .collect(),
            experts: self.experts.clone(),
        }
    }
}

impl TpTokens {
    /// Of the row's tokens, those that this rank's routers see.
    pub fn routed(&self) -> Range<usize> {
        match self.experts {
            Some(_) => self.share(),
            None => 0..self.counts.iter().sum(),
        }
    }

    /// Of the row's tokens, those that are this rank's where each is one's.
    fn share(&self) -> Range<usize> {
        let rank = self.group.rank();
        let start: usize = self.counts[..rank].iter().sum();
        start..start + self.counts[rank]
    }

    /// What all ranks of the row have of `part` of each, in order, when that is waited for.
    fn start_gather(&self, part: &Tensor) -> Result<Joining, TpError> {
        let features = part.size()[1];
        let tokens: usize = self.counts.iter().sum();
        let all = Tensor::empty([tokens as i64, features], (part.kind(), part.device()));
        let work = self
            .group
            .all_gather_into(&all, &part.contiguous(), &self.elements(features))
            .map_err(tp_error)?;
        Ok(Joining {
            work: Some(work),
            result: all,
        })
    }

    /// Elements per rank of a tensor with `features` columns.
    fn elements(&self, features: i64) -> Vec<usize> {
        self.counts
            .iter()
            .map(|count| count * features as usize)
            .collect()
    }

    fn start(&self, partial: Tensor) -> Result<Joining, TpError> {
        let group = &self.group;
        if group.size() == 1 {
            return Ok(Joining {
                work: None,
                result: partial,
            });
        }
        if !self.cuts_tokens {
            let work = group
                .all_reduce(&partial, ReduceOp::Sum)
                .map_err(tp_error)?;
            return Ok(Joining {
                work: Some(work),
                result: partial,
            });
        }
        let features = partial.size()[1];
        let mine = self.counts[group.rank()] as i64;
        let result = Tensor::empty([mine, features], (partial.kind(), partial.device()));
        let work = group
            .reduce_scatter_into(&result, &partial, &self.elements(features), ReduceOp::Sum)
            .map_err(tp_error)?;
        Ok(Joining {
            work: Some(work),
            result,
        })
    }
}

impl TpContext for TpTokens {
    fn gather_tokens(&self, local: &Tensor) -> Result<Tensor, TpError> {
        if !self.cuts_tokens {
            return Ok(local.shallow_clone());
        }
        self.start_gather(local)?.finish()
    }

    fn reduce_tokens(&self, partial: Tensor) -> Result<Tensor, TpError> {
        self.start(partial)?.finish()
    }

    fn start_reduce_tokens(&self, partial: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        Ok(self.start(partial)?.started())
    }

    fn own_tokens(&self, all: Tensor) -> Tensor {
        if !self.cuts_tokens {
            return all;
        }
        narrow(&all, self.share())
    }

    fn share_tokens(&self, own: &Tensor) -> Tensor {
        match self.cuts_tokens || self.group.size() == 1 {
            true => own.shallow_clone(),
            false => narrow(own, self.share()),
        }
    }

    fn start_join_shares(&self, share: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        if self.cuts_tokens || self.group.size() == 1 {
            return Ok(Box::new(share));
        }
        Ok(self.start_gather(&share)?.started())
    }

    fn expert_peers(&self) -> Option<&dyn ExpertPeers> {
        let experts = self.experts.as_deref()?;
        Some(experts)
    }

    fn sum_over_row(&self, partial: &Tensor) -> Result<(), TpError> {
        let group = &self.group;
        if group.size() == 1 {
            return Ok(());
        }
        group
            .all_reduce(partial, ReduceOp::Sum)
            .and_then(Work::wait)
            .map_err(tp_error)
    }

    fn gather_stats(&self, stats: &Tensor) -> Result<Tensor, TpError> {
        let group = &self.group;
        let mut size = vec![group.size() as i64];
        size.extend(stats.size());
        let all = Tensor::empty(size, (stats.kind(), stats.device()));
        let counts = vec![stats.numel(); group.size()];
        group
            .all_gather_into(&all, &stats.contiguous(), &counts)
            .and_then(Work::wait)
            .map_err(tp_error)?;
        Ok(all)
    }
}

fn narrow(all: &Tensor, rows: Range<usize>) -> Tensor {
    all.narrow(0, rows.start as i64, rows.len() as i64)
        .contiguous()
}
