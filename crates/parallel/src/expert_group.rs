//! The ranks over which experts are spread, as the modules see them: each conversation is one collective.

use std::ops::Range;
use std::sync::Arc;

use tandem_comm::{CommError, ProcessGroup, all_gather_numbers};
use tandem_mesh::partition;
use tandem_model::{ExpertPeers, PendingTensor, TpError};
use tandem_tensor::{Device, Tensor};

use crate::error::tp_error;
use crate::pending::Joining;

/// Ranks that together have every expert.
pub struct ExpertGroup {
    group: Arc<dyn ProcessGroup>,
    device: Device,
}

impl ExpertGroup {
    /// Of the ranks of `group`, whose tensors are on `device`.
    pub fn new(group: Arc<dyn ProcessGroup>, device: Device) -> Self {
        Self { group, device }
    }

    /// As [`ProcessGroup::check`].
    ///
    /// # Errors
    /// What ended the group.
    pub fn check(&self) -> Result<(), CommError> {
        self.group.check()
    }

    fn submit(&self, x: &Tensor, counts: &[usize]) -> Result<Joining, TpError> {
        let (own, features) = (self.group.rank(), x.size()[1]);
        let to_this_rank = counts.iter().skip(own).step_by(self.group.size());
        let rows: usize = to_this_rank.sum();
        let result = Tensor::empty([rows as i64, features], (x.kind(), x.device()));
        let elements: Vec<usize> = counts.iter().map(|n| n * features as usize).collect();
        let work = self
            .group
            .all_to_all_into(&result, &x.contiguous(), &elements)
            .map_err(tp_error)?;
        Ok(Joining {
            work: Some(work),
            result,
        })
    }
}

impl ExpertPeers for ExpertGroup {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn shares(&self, experts: usize) -> Vec<Range<usize>> {
        let ranks = self.group.size();
        (0..ranks)
            .map(|rank| partition(experts, ranks, rank))
            .collect()
    }

    fn gather_counts(&self, own: &[usize]) -> Result<Vec<Vec<usize>>, TpError> {
        let own: Vec<i64> = own.iter().map(|&count| count as i64).collect();
        let all = all_gather_numbers(self.group.as_ref(), &own, self.device).map_err(tp_error)?;
        let counts = all.into_iter();
        Ok(counts
            .map(|of_rank| of_rank.into_iter().map(|count| count as usize).collect())
            .collect())
    }

    fn exchange(&self, x: &Tensor, counts: &[usize]) -> Result<Tensor, TpError> {
        self.submit(x, counts)?.finish()
    }

    fn start_exchange(
        &self,
        x: &Tensor,
        counts: &[usize],
    ) -> Result<Box<dyn PendingTensor>, TpError> {
        Ok(self.submit(x, counts)?.started())
    }
}
