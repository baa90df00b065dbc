//! What all groups with a transport have in common: from a caller's tensors to an operation of the group.

use tandem_tensor::{Device, Tensor};

use crate::collective::{Collective, ReduceOp};
use crate::error::Result;
use crate::group::context::GroupContext;
use crate::group::operation::{Arguments, Operation};
use crate::group::process_group::ProcessGroup;
use crate::group::work::Work;

/// One member's end of a group that has a transport: what differs from one transport to the next.
pub(crate) trait Member: Send + Sync {
    fn context(&self) -> &GroupContext;

    /// Where the group's tensors live.
    fn device(&self) -> Device;

    fn submit(&self, operation: Operation) -> Result<Work>;

    fn submit_barrier(&self) -> Result<Work>;

    /// See [`ProcessGroup::check`].
    fn check_done(&self) -> Result<()> {
        Ok(())
    }

    fn arguments(&self, collective: Collective) -> Arguments<'_> {
        Arguments {
            group: &self.context().name,
            rank: self.context().rank,
            size: self.context().size(),
            device: self.device(),
            collective,
        }
    }
}

impl<M: Member> ProcessGroup for M {
    fn rank(&self) -> usize {
        self.context().rank
    }

    fn ranks(&self) -> &[usize] {
        &self.context().ranks
    }

    fn name(&self) -> &str {
        &self.context().name
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work> {
        let arguments = self.arguments(Collective::AllReduce);
        self.submit(arguments.all_reduce(tensor, op)?)
    }

    fn all_gather_into(&self, output: &Tensor, input: &Tensor, counts: &[usize]) -> Result<Work> {
        let arguments = self.arguments(Collective::AllGather);
        self.submit(arguments.all_gather(output, input, counts)?)
    }

    fn reduce_scatter_into(
        &self,
        output: &Tensor,
        input: &Tensor,
        counts: &[usize],
        op: ReduceOp,
    ) -> Result<Work> {
        let arguments = self.arguments(Collective::ReduceScatter);
        self.submit(arguments.reduce_scatter(output, input, counts, op)?)
    }

    fn all_to_all_into(&self, output: &Tensor, input: &Tensor, counts: &[usize]) -> Result<Work> {
        let arguments = self.arguments(Collective::AllToAll);
        self.submit(arguments.all_to_all(output, input, counts)?)
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        let arguments = self.arguments(Collective::Broadcast);
        self.submit(arguments.broadcast(tensor, root)?)
    }

    fn barrier(&self) -> Result<Work> {
        self.submit_barrier()
    }

    fn check(&self) -> Result<()> {
        self.check_done()
    }
}
