//! A group whose operations go through a queue: those of every transport that the host carries out.

use std::sync::Arc;

use tandem_tensor::Device;

use crate::collective::Collective;
use crate::error::Result;
use crate::group::context::GroupContext;
use crate::group::member::Member;
use crate::group::operation::Operation;
use crate::group::queue::{Backend, Queue};
use crate::group::work::Work;

/// A group whose transport is the host's work.
pub(crate) struct CpuGroup {
    context: Arc<GroupContext>,
    /// Where its tensors live: in host memory, unless the transport fetches them from elsewhere.
    device: Device,
    queue: Arc<Queue>,
}

impl CpuGroup {
    pub(crate) fn new(
        context: Arc<GroupContext>,
        device: Device,
        backend: Box<dyn Backend>,
    ) -> Self {
        let queue = Queue::new(context.clone(), backend);
        Self {
            context,
            device,
            queue,
        }
    }
}

impl Member for CpuGroup {
    fn context(&self) -> &GroupContext {
        &self.context
    }

    fn device(&self) -> Device {
        self.device
    }

    fn submit(&self, operation: Operation) -> Result<Work> {
        self.queue.submit(operation)
    }

    fn submit_barrier(&self) -> Result<Work> {
        self.submit(self.arguments(Collective::Barrier).barrier())
    }
}
