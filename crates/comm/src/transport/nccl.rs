//! Collectives between CUDA devices, through NCCL.
//!
//! **This transport compiles everywhere but was not run where it was written, for want of devices.** The conformance suite
//! does not cover it yet.
//!
//! Operations are enqueued on a stream of the group's own when they are submitted, so they overlap with computation without
//! [`Work::start`]. They begin after what the default stream has been given so far, and [`Work::wait`] makes the default
//! stream, not the host, wait for them. The default stream is the one that libtorch computes on: nothing here
//! selects another. Only [`barrier`](ProcessGroup::barrier) makes the host wait.
//!
//! Every rank gets the same bits, but the order of a reduction is NCCL's choice, and 16-bit sums are rounded as NCCL does.
//! Ranks that disagree in an operation are not told so: NCCL does not compare, so they end in a timeout or worse.
//! Observers see nothing of this transport; CUDA's own tools do.

mod library;
mod watch;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError};
use parking_lot::Mutex;
use tandem_tensor::{Device, Kind, Tensor};

use crate::collective::{Collective, ReduceOp};
use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::member::Member;
use crate::group::operation::Operation;
use crate::group::process_group::ProcessGroup;
use crate::group::work::{Pending, Work};
use crate::meet::membership::Membership;
use crate::transport::nccl::library::{Library, UNIQUE_ID_BYTES, UniqueId};
use crate::transport::nccl::watch::Watch;

/// How often the host looks whether a barrier is done.
const POLL: std::time::Duration = std::time::Duration::from_micros(50);

/// One member's end of a group of CUDA devices.
struct NcclGroup {
    context: Arc<GroupContext>,
    device: Device,
    cuda: Arc<CudaContext>,
    /// What libtorch computes on.
    compute: Arc<CudaStream>,
    /// What collectives run on.
    stream: Arc<CudaStream>,
    watch: Arc<Watch>,
    /// Number of the last operation. Held while one is enqueued, so that all go in order.
    submitted: Mutex<u64>,
    /// Something to reduce in a barrier.
    token: Mutex<Tensor>,
}

/// Creates this rank's end of a group on `Device::Cuda(ordinal)`.
pub(crate) fn create(
    context: Arc<GroupContext>,
    membership: &Membership<'_>,
    ordinal: usize,
) -> Result<Arc<dyn ProcessGroup>> {
    let cuda_failed = |reason: String| CommError::Device {
        library: "CUDA",
        reason,
        site: context.creation(),
    };
    let nccl_failed = |reason: String| CommError::Device {
        library: "NCCL",
        reason,
        site: context.creation(),
    };
    // SAFETY: looking runs the driver library's initialisers, as using it does.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(cuda_failed(
            "the driver library libcuda.so.1 is not there".to_owned(),
        ));
    }
    let library = Arc::new(Library::open().map_err(nccl_failed)?);
    let cuda = CudaContext::new(ordinal).map_err(|error| cuda_failed(error.to_string()))?;
    let stream = cuda
        .new_stream()
        .map_err(|error| cuda_failed(error.to_string()))?;
    let id = if context.rank == 0 {
        let id = library.unique_id().map_err(nccl_failed)?;
        membership.set("nccl", &to_hex(&id))?;
        id
    } else {
        from_hex(&membership.get(0, "nccl")?)
            .ok_or_else(|| nccl_failed("the group's first rank sent no id".to_owned()))?
    };
    let watch = Watch::start(context.clone(), library, cuda.clone(), id)?;
    let device = Device::Cuda(ordinal);
    Ok(Arc::new(NcclGroup {
        compute: cuda.default_stream(),
        context,
        device,
        cuda,
        stream,
        watch,
        submitted: Mutex::new(0),
        token: Mutex::new(Tensor::zeros([1], (Kind::Int, device))),
    }))
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
        self.watch.check()?;
        *submitted += 1;
        operation.signature.sequence = *submitted;
        let signature = operation.signature;
        let failed = |error: DriverError| self.watch.cuda_error(&error, &signature);
        self.cuda.bind_to_thread().map_err(failed)?;
        let ready = self.compute.record_event(None).map_err(failed)?;
        self.stream.wait(&ready).map_err(failed)?;
        self.watch.launch(&signature, |library, communicator| {
            let stream = self.stream.cu_stream().cast();
            library.enqueue(communicator, stream, &operation, self.context.rank)
        })?;
        let done = Arc::new(self.stream.record_event(None).map_err(failed)?);
        self.watch.follow(done.clone(), signature);
        Ok(Work::new(Enqueued {
            watch: self.watch.clone(),
            cuda: self.cuda.clone(),
            compute: self.compute.clone(),
            done,
            operation,
            is_ordered: false,
        }))
    }

    fn submit_barrier(&self) -> Result<Work> {
        let token = self.token.lock();
        let arguments = self.arguments(Collective::Barrier);
        self.submit(arguments.all_reduce(&token, ReduceOp::Max)?)
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
    cuda: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    done: Arc<CudaEvent>,
    /// Keeps the tensors.
    operation: Operation,
    /// Whether the default stream waits for it already.
    is_ordered: bool,
}

impl Enqueued {
    /// What the default stream is given from now on runs after the operation.
    fn order(&mut self) -> Result<(), DriverError> {
        if !self.is_ordered {
            self.is_ordered = true;
            self.cuda.bind_to_thread()?;
            self.compute.wait(&self.done)?;
        }
        Ok(())
    }
}

impl Pending for Enqueued {
    fn start(&mut self) {}

    fn wait(&mut self) -> Result<()> {
        let signature = self.operation.signature;
        self.watch.check()?;
        let ordered = self.order();
        ordered.map_err(|error| self.watch.cuda_error(&error, &signature))?;
        while signature.collective == Collective::Barrier && !self.is_finished() {
            self.watch.check()?;
            std::thread::sleep(POLL);
        }
        Ok(())
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
