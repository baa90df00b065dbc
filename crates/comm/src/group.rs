//! The trait that every transport implements.

use std::sync::Arc;

use tandem_tensor::{Device, Tensor};

use crate::collective::{Collective, ReduceOp};
use crate::context::GroupContext;
use crate::error::Result;
use crate::operation::{Arguments, Operation};
use crate::queue::{Backend, Queue};
use crate::work::Work;

/// A fixed set of ranks that do collectives together.
///
/// All members must submit the same operations, with the same sizes and element types, in the same order; a rank that
/// does not is named in a [`Mismatch`](crate::CommError::Mismatch). Reductions combine elements in the order of the
/// group's ranks, so that results are the same bits on every rank and in every run (on CPU transports).
///
/// Tensors must be contiguous, on the group's device, and of kind `Float`, `BFloat16`, `Half`, `Double`, `Int64`, `Int` or
/// `Uint8`. Shapes do not matter, only the number of elements.
///
/// Every method fails at once with [`Invalid`](crate::CommError::Invalid) for arguments that make no operation (the group
/// stays usable) and with [`Poisoned`](crate::CommError::Poisoned) after an earlier operation failed.
pub trait ProcessGroup: Send + Sync {
    /// This process in the group, `0..size`.
    fn rank(&self) -> usize;

    /// Members of the group.
    fn size(&self) -> usize {
        self.ranks().len()
    }

    /// World ranks of the members, in group order.
    fn ranks(&self) -> &[usize];

    /// The name that messages use, such as "tp".
    fn name(&self) -> &str;

    /// Replaces `tensor` on every rank by the reduction of all ranks' tensors.
    ///
    /// # Errors
    /// See the trait.
    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work>;

    /// Concatenates all ranks' `input`s, in group order, into every rank's `output`.
    ///
    /// Rank `i` contributes `counts[i]` elements, which may be none. `input` may be this rank's own range of `output`, which
    /// saves a copy; no other overlap is allowed.
    ///
    /// # Errors
    /// See the trait.
    fn all_gather_into(&self, output: &Tensor, input: &Tensor, counts: &[usize]) -> Result<Work>;

    /// Reduces all ranks' `input`s and leaves rank `i` with its range of `counts[i]` elements in `output`.
    ///
    /// `output` may be this rank's own range of `input`; no other overlap is allowed. Where it is, the rest of `input` is
    /// left as it was.
    ///
    /// # Errors
    /// See the trait.
    fn reduce_scatter_into(
        &self,
        output: &Tensor,
        input: &Tensor,
        counts: &[usize],
        op: ReduceOp,
    ) -> Result<Work>;

    /// Replaces `tensor` on every rank by that of `root`, a rank of the group (not of the world).
    ///
    /// # Errors
    /// See the trait.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work>;

    /// Done when every rank has submitted and begun it.
    ///
    /// # Errors
    /// See the trait.
    fn barrier(&self) -> Result<Work>;
}

/// A group whose transport reads and writes host memory.
pub(crate) struct CpuGroup {
    context: Arc<GroupContext>,
    queue: Arc<Queue>,
}

impl CpuGroup {
    pub(crate) fn new(context: Arc<GroupContext>, backend: Box<dyn Backend>) -> Self {
        let queue = Queue::new(context.clone(), backend);
        Self { context, queue }
    }
}

impl Member for CpuGroup {
    fn context(&self) -> &GroupContext {
        &self.context
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn submit(&self, operation: Operation) -> Result<Work> {
        self.queue.submit(operation)
    }

    fn submit_barrier(&self) -> Result<Work> {
        self.submit(self.arguments(Collective::Barrier).barrier())
    }
}

/// One member's end of a group that has a transport: what differs from one transport to the next.
pub(crate) trait Member: Send + Sync {
    fn context(&self) -> &GroupContext;

    /// Where the group's tensors live.
    fn device(&self) -> Device;

    fn submit(&self, operation: Operation) -> Result<Work>;

    fn submit_barrier(&self) -> Result<Work>;

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

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        let arguments = self.arguments(Collective::Broadcast);
        self.submit(arguments.broadcast(tensor, root)?)
    }

    fn barrier(&self) -> Result<Work> {
        self.submit_barrier()
    }
}
