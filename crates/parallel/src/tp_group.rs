//! The tensor parallel row as the modules see it: each conversation is one collective.

use std::sync::Arc;

use tandem_comm::{CommError, ProcessGroup, ReduceOp, Work};
use tandem_mesh::partition;
use tandem_model::{PendingTensor, TpContext, TpError};
use tandem_tensor::Tensor;

/// A row of the mesh.
#[derive(Clone)]
pub struct TpGroup {
    /// The row's process group.
    pub group: Arc<dyn ProcessGroup>,
    /// Cut the residual stream over the row by token (arXiv 2205.05198).
    pub sequence_parallel: bool,
}

/// The row, for micro-batches of a known number of tokens.
pub struct TpTokens {
    group: Arc<dyn ProcessGroup>,
    /// Whether the residual stream is cut over the row by token.
    cuts_tokens: bool,
    /// Tokens per rank where it is.
    counts: Vec<usize>,
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
        }
    }
}

impl TpTokens {
    /// Elements per rank of a tensor with `features` columns.
    fn elements(&self, features: i64) -> Vec<usize> {
        self.counts
            .iter()
            .map(|count| count * features as usize)
            .collect()
    }

    fn start(&self, partial: Tensor) -> Result<Reducing, TpError> {
        let group = &self.group;
        if group.size() == 1 {
            return Ok(Reducing {
                work: None,
                result: partial,
            });
        }
        if !self.cuts_tokens {
            let work = group
                .all_reduce(&partial, ReduceOp::Sum)
                .map_err(tp_error)?;
            return Ok(Reducing {
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
        Ok(Reducing {
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
        let features = local.size()[1];
        let tokens: usize = self.counts.iter().sum();
        let all = Tensor::empty([tokens as i64, features], (local.kind(), local.device()));
        self.group
            .all_gather_into(&all, &local.contiguous(), &self.elements(features))
            .and_then(Work::wait)
            .map_err(tp_error)?;
        Ok(all)
    }

    fn reduce_tokens(&self, partial: Tensor) -> Result<Tensor, TpError> {
        self.start(partial)?.finish()
    }

    fn start_reduce_tokens(&self, partial: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        let mut reducing = self.start(partial)?;
        if let Some(work) = &mut reducing.work {
            work.start();
        }
        Ok(Box::new(reducing))
    }

    fn own_tokens(&self, all: Tensor) -> Tensor {
        if !self.cuts_tokens {
            return all;
        }
        let rank = self.group.rank();
        let start: usize = self.counts[..rank].iter().sum();
        all.narrow(0, start as i64, self.counts[rank] as i64)
            .contiguous()
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

/// A sum over the row that has been asked for.
struct Reducing {
    work: Option<Work>,
    result: Tensor,
}

impl Reducing {
    fn finish(self) -> Result<Tensor, TpError> {
        if let Some(work) = self.work {
            work.wait().map_err(tp_error)?;
        }
        Ok(self.result)
    }
}

impl PendingTensor for Reducing {
    fn wait(self: Box<Self>) -> Result<Tensor, TpError> {
        (*self).finish()
    }
}

fn tp_error(error: CommError) -> TpError {
    TpError(Box::new(error))
}
