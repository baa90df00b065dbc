//! Collectives between CUDA devices, through NCCL.
//!
//! **No GPU has run this transport.** Its tests run it on a simulated one (`crates/simulated`), which is strict about order and
//! failures and knows nothing of speed.
//!
//! Operations are enqueued on a stream of the group's own when they are submitted, so they overlap with computation without
//! [`Work::start`]. They begin after what the default stream has been given so far, and [`Work::wait`] makes the default
//! stream, not the host, wait for them. The default stream is the one that libtorch computes on: nothing here
//! selects another. Only [`barrier`](ProcessGroup::barrier) makes the host wait. What fails after `wait` shows in
//! [`check`](ProcessGroup::check) and in every later operation.
//!
//! Every rank gets the same bits, but the order of a reduction is NCCL's choice, and 16-bit sums are rounded as NCCL does.
//! NCCL neither compares what ranks ask for nor says who is missing, so who waits for long asks the others (`inquiry.rs`):
//! who does something else is named, unless NCCL takes it for the same (a sum for a maximum).
//! Observers see nothing of this transport; CUDA's own tools do.

mod inquiry;
pub(crate) mod library;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::{CudaEvent, DriverError};
use parking_lot::Mutex;
use tandem_tensor::Device;

use crate::collective::Collective;
use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::member::Member;
use crate::group::operation::Operation;
use crate::group::work::{Pending, Work};
use crate::meet::board::Board;
use crate::meet::membership::Membership;
use crate::transport::device::{CudaDevice, DeviceMemory, words};
use crate::transport::nccl::library::{Library, UNIQUE_ID_BYTES, UniqueId};
use crate::transport::nccl::watch::{Followed, Watch};

/// How often the host looks whether a barrier is done.
const POLL: std::time::Duration = std::time::Duration::from_micros(50);

/// One member's end of a group of CUDA devices.
pub(crate) struct NcclGroup {
    context: Arc<GroupContext>,
    device: Device,
    cuda: Arc<CudaDevice>,
    watch: Arc<Watch>,
    /// Number of the last operation. Held while one is enqueued, so that all go in order.
    submitted: Mutex<u64>,
    /// Something to reduce in a barrier: a byte, whose value is nobody's business.
    token: DeviceMemory,
}

/// Creates this rank's end of a group on `cuda`, which is `Device::Cuda(ordinal)`.
pub(crate) fn create(
    context: Arc<GroupContext>,
    membership: &Membership<'_>,
    board: Board,
    (cuda, ordinal): (CudaDevice, usize),
    library: Library,
) -> Result<NcclGroup> {
    let failed = |library, reason| CommError::Device {
        library,
        reason,
        site: context.creation(),
    };
    let nccl_failed = |reason: String| failed("NCCL", reason);
    let (cuda, library) = (Arc::new(cuda), Arc::new(library));
    let id = if context.rank == 0 {
        let id = library.unique_id().map_err(nccl_failed)?;
        membership.set("nccl", &to_hex(&id))?;
        id
    } else {
        from_hex(&membership.get(0, "nccl")?)
            .ok_or_else(|| nccl_failed("the group's first rank sent no id".to_owned()))?
    };
    let token =
        DeviceMemory::new(cuda.clone(), 1).map_err(|error| failed("CUDA", words(&error)))?;
    let watch = Watch::start(context.clone(), library, cuda.clone(), board, id)?;
    Ok(NcclGroup {
        context,
        device: Device::Cuda(ordinal),
        cuda,
        watch,
        submitted: Mutex::new(0),
        token,
    })
}

impl NcclGroup {
    /// Puts the operation on the group's stream, behind what the default stream was given so far.
    fn enqueue(&self, operation: &Operation) -> Result<Arc<CudaEvent>> {
        let signature = &operation.signature;
        let failed = |error: DriverError| self.watch.cuda_failed(&error, signature);
        self.cuda.bind().map_err(failed)?;
        let ready = self.cuda.mark(&self.cuda.compute).map_err(failed)?;
        self.cuda.own.wait(&ready).map_err(failed)?;
        self.watch.launch(signature, |library, communicator| {
            let stream = self.cuda.own.cu_stream().cast();
            library.enqueue(communicator, stream, operation, self.context.rank)
        })?;
        self.cuda.mark(&self.cuda.own).map_err(failed)
    }
}

impl Member for NcclGroup {
    fn context(&self) -> &GroupContext {
        &self.context
    }

    fn device(&self) -> Device {
        self.device
    }

    fn submit(&self, mut operation: Operation) -> Result<Work> {
        let mut submitted = self.submitted.lock();
        let number = *submitted + 1;
        self.watch.check(number)?;
        *submitted = number;
        operation.signature.sequence = number;
        let done = self.enqueue(&operation)?;
        let is_wanted = Arc::new(AtomicBool::new(false));
        self.watch.follow(Followed {
            done: done.clone(),
            signature: operation.signature,
            is_wanted: is_wanted.clone(),
        });
        Ok(Work::new(Enqueued {
            watch: self.watch.clone(),
            cuda: self.cuda.clone(),
            done,
            operation,
            is_wanted,
            is_ordered: false,
        }))
    }

    fn submit_barrier(&self) -> Result<Work> {
        let mut operation = self.arguments(Collective::Barrier).barrier();
        operation.input = self.token.as_ptr();
        operation.output = self.token.as_ptr();
        self.submit(operation)
    }

    fn check_done(&self) -> Result<()> {
        self.watch.first_failure()
    }
}

impl Drop for NcclGroup {
    fn drop(&mut self) {
        self.watch.stop();
    }
}

/// An operation on the group's stream.
struct Enqueued {
    watch: Arc<Watch>,
    cuda: Arc<CudaDevice>,
    done: Arc<CudaEvent>,
    /// Keeps the tensors.
    operation: Operation,
    /// Somebody has waited for it, so that it is done even if the group is dropped.
    is_wanted: Arc<AtomicBool>,
    /// Whether the default stream waits for it already.
    is_ordered: bool,
}

impl Enqueued {
    /// What the default stream is given from now on runs after the operation.
    fn order(&mut self) -> Result<(), DriverError> {
        if !self.is_ordered {
            self.is_ordered = true;
            self.cuda.bind()?;
            self.cuda.compute.wait(&self.done)?;
        }
        Ok(())
    }
}

impl Pending for Enqueued {
    fn start(&mut self) {}

    fn wait(&mut self) -> Result<()> {
        let signature = self.operation.signature;
        self.is_wanted.store(true, Ordering::Release);
        let ordered = self.order();
        ordered.map_err(|error| self.watch.cuda_failed(&error, &signature))?;
        while signature.collective == Collective::Barrier && !self.is_finished() {
            self.watch.check(signature.sequence)?;
            std::thread::sleep(POLL);
        }
        self.watch.check(signature.sequence)
    }

    fn is_finished(&self) -> bool {
        self.done.is_complete()
    }
}

impl Drop for Enqueued {
    fn drop(&mut self) {
        // The tensors' memory goes back to libtorch, which hands it to the next user of the default stream: that one must
        // not come before the operation is done. If this fails, the device is of no more use anyway.
        let _ordered = self.order();
    }
}

fn to_hex(id: &UniqueId) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<UniqueId> {
    let mut id = [0; UNIQUE_ID_BYTES];
    if text.len() != 2 * UNIQUE_ID_BYTES || !text.is_ascii() {
        return None;
    }
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_the_store() {
        let id: UniqueId = std::array::from_fn(|index| (index * 37) as u8);
        assert_eq!(from_hex(&to_hex(&id)), Some(id));
        assert_eq!(from_hex("00"), None);
        assert_eq!(from_hex(&"zz".repeat(UNIQUE_ID_BYTES)), None);
    }
}
