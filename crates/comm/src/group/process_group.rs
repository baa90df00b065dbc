//! The trait that every group implements, whatever moves its data.

use tandem_tensor::Tensor;

use crate::collective::ReduceOp;
use crate::error::Result;
use crate::group::work::Work;

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

    /// Sends each rank a part of this rank's `input`, and leaves in `output` what all ranks have sent to this one, in group
    /// order.
    ///
    /// `counts[from * size + to]` elements go from rank `from` to rank `to`, which may be none; all ranks pass the same counts,
    /// so that whoever is wrong about them is told. `output` and `input` must not overlap.
    ///
    /// # Errors
    /// See the trait.
    fn all_to_all_into(&self, output: &Tensor, input: &Tensor, counts: &[usize]) -> Result<Work>;

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

    /// Fails when an operation failed that was waited for already. Between devices, [`Work::wait`] makes the device wait and
    /// not the host, so who has read a result on the host asks here whether it is one: what is left of an operation that was
    /// aborted are numbers, too. (On CPUs `wait` has said it.)
    ///
    /// # Errors
    /// What went wrong with the first operation that failed.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}
