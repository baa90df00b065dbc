//! From a device into pinned host memory and back.

use std::sync::Arc;

use cudarc::driver::DriverError;
use tandem_tensor::Device;

use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::cpu::CpuGroup;
use crate::group::member::Member;
use crate::group::operation::Operation;
use crate::group::queue::Backend;
use crate::group::work::Work;
use crate::transport::device::{CudaDevice, PinnedMemory, download, upload, words};
use crate::transport::staged::{Stage, Staged};

/// A group of devices whose collectives go through host memory.
///
/// An operation begins after what the default stream was given before it was submitted. It is the host's work, so it is done
/// when [`Work::wait`] returns: whatever the device is given then comes after it.
pub(crate) struct StagedGroup {
    cuda: Arc<CudaDevice>,
    group: CpuGroup,
}

impl StagedGroup {
    pub(super) fn new(
        context: Arc<GroupContext>,
        device: Device,
        cuda: CudaDevice,
        inner: Box<dyn Backend>,
    ) -> Self {
        let cuda = Arc::new(cuda);
        let stage = Box::new(DeviceStage {
            cuda: cuda.clone(),
            memory: None,
        });
        let staged = Staged::new(context.clone(), inner, stage);
        Self {
            cuda,
            group: CpuGroup::new(context, device, Box::new(staged)),
        }
    }
}

impl Member for StagedGroup {
    fn context(&self) -> &GroupContext {
        self.group.context()
    }

    fn device(&self) -> Device {
        self.group.device()
    }

    fn submit(&self, mut operation: Operation) -> Result<Work> {
        let marked = self
            .cuda
            .bind()
            .and_then(|()| self.cuda.mark(&self.cuda.compute));
        let ready = marked.map_err(|error| {
            let error = CommError::Device {
                library: "CUDA",
                reason: words(&error),
                site: self.context().site(&operation.signature),
            };
            (self.context().escalate)(&error);
            error
        })?;
        operation.ready = Some(ready);
        self.group.submit(operation)
    }

    fn submit_barrier(&self) -> Result<Work> {
        self.group.submit_barrier()
    }
}

/// A stage in pinned memory, which the device copies to and from by itself.
struct DeviceStage {
    cuda: Arc<CudaDevice>,
    memory: Option<PinnedMemory>,
}

impl Stage for DeviceStage {
    fn reserve(&mut self, bytes: usize) -> Result<*mut u8, String> {
        let memory = match self.memory.take().filter(|memory| memory.len() >= bytes) {
            Some(memory) => memory,
            None => PinnedMemory::new(self.cuda.clone(), bytes).map_err(|error| {
                format!(
                    "{bytes} bytes of pinned host memory cannot be had: {}",
                    words(&error)
                )
            })?,
        };
        Ok(self.memory.insert(memory).as_ptr())
    }

    fn fetch(&mut self, operation: &Operation, stage: *mut u8, bytes: usize) -> Result<(), String> {
        let stream = &self.cuda.own;
        let copy = || -> Result<(), DriverError> {
            self.cuda.bind()?;
            if let Some(ready) = &operation.ready {
                stream.wait(ready)?;
            }
            // SAFETY: the operation's input has as many bytes, and nobody writes to it; the stage is ours, and the copy is
            // waited for.
            unsafe { download(stream, operation.input, stage, bytes) }?;
            stream.synchronize()
        };
        copy().map_err(|error| words(&error))
    }

    fn put_back(
        &mut self,
        operation: &Operation,
        stage: *const u8,
        bytes: usize,
    ) -> Result<(), String> {
        let stream = &self.cuda.own;
        let copy = || -> Result<(), DriverError> {
            self.cuda.bind()?;
            // SAFETY: the operation's output has room for as many bytes, and nobody else touches it; the stage is ours, and the
            // copy is waited for.
            unsafe { upload(stream, stage, operation.output, bytes) }?;
            stream.synchronize()
        };
        copy().map_err(|error| words(&error))
    }
}
