//! The group of one rank: every collective is a copy or nothing at all.

use tandem_tensor::{Device, Tensor};

use crate::collective::{Collective, ReduceOp};
use crate::error::Result;
use crate::group::operation::Arguments;
use crate::group::process_group::ProcessGroup;
use crate::group::work::Work;

/// A group that needs no transport. It checks its arguments like any other.
pub struct SingleGroup {
    name: std::sync::Arc<str>,
    ranks: [usize; 1],
    device: Device,
}

impl SingleGroup {
    /// The group `name` of the world rank `rank`, for tensors on `device`.
    pub fn new(name: &str, rank: usize, device: Device) -> Self {
        Self {
            name: name.into(),
            ranks: [rank],
            device,
        }
    }

    fn arguments(&self, collective: Collective, tensor: &Tensor) -> Arguments<'_> {
        Arguments {
            group: &self.name,
            rank: 0,
            size: 1,
            // A group of one moves nothing between devices, so a CPU group takes tensors of any device.
            device: match self.device {
                Device::Cpu => tensor.device(),
                device => device,
            },
            collective,
        }
    }
}

impl ProcessGroup for SingleGroup {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work> {
        self.arguments(Collective::AllReduce, tensor)
            .all_reduce(tensor, op)?;
        Ok(Work::finished())
    }

    fn all_gather_into(&self, output: &Tensor, input: &Tensor, counts: &[usize]) -> Result<Work> {
        self.arguments(Collective::AllGather, output)
            .all_gather(output, input, counts)?;
        copy(output, input);
        Ok(Work::finished())
    }

    fn reduce_scatter_into(
        &self,
        output: &Tensor,
        input: &Tensor,
        counts: &[usize],
        op: ReduceOp,
    ) -> Result<Work> {
        self.arguments(Collective::ReduceScatter, input)
            .reduce_scatter(output, input, counts, op)?;
        copy(output, input);
        Ok(Work::finished())
    }

    fn all_to_all_into(&self, output: &Tensor, input: &Tensor, counts: &[usize]) -> Result<Work> {
        self.arguments(Collective::AllToAll, input)
            .all_to_all(output, input, counts)?;
        copy(output, input);
        Ok(Work::finished())
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        self.arguments(Collective::Broadcast, tensor)
            .broadcast(tensor, root)?;
        Ok(Work::finished())
    }

    fn barrier(&self) -> Result<Work> {
        Ok(Work::finished())
    }
}

/// Copies unless both are the same memory.
fn copy(output: &Tensor, input: &Tensor) {
    if output.data_ptr() != input.data_ptr() {
        output.view([-1]).copy_(&input.view([-1]));
    }
}
