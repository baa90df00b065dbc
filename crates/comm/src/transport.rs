//! What moves a group's data, and which of it a new group gets.

#[cfg(feature = "nccl")]
mod nccl;
mod reduce;
mod shm;
mod tcp;

use std::sync::Arc;

use tandem_tensor::Device;

use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::cpu::CpuGroup;
use crate::group::process_group::ProcessGroup;
use crate::group::queue::Backend;
use crate::meet::config::Transport;
use crate::meet::membership::Membership;
use crate::transport::shm::{DIFFERENT_HOSTS, SharedMemory};
use crate::transport::tcp::Tcp;

/// Creates this rank's end of a group of at least two ranks, for tensors in host memory or on a CUDA device.
///
/// # Errors
/// See [`World::new_device_group`](crate::World::new_device_group).
pub(crate) fn create(
    context: Arc<GroupContext>,
    membership: &Membership<'_>,
    wanted: Transport,
    device: Device,
) -> Result<Arc<dyn ProcessGroup>> {
    if let Device::Cuda(ordinal) = device {
        return on_cuda(context, membership, ordinal);
    }
    let backend = on_host(&context, membership, wanted)?;
    Ok(Arc::new(CpuGroup::new(context, backend)))
}

fn on_host(
    context: &Arc<GroupContext>,
    membership: &Membership<'_>,
    wanted: Transport,
) -> Result<Box<dyn Backend>> {
    if wanted == Transport::Tcp {
        return Ok(Box::new(Tcp::connect(context, membership)?));
    }
    match SharedMemory::join(context, membership)? {
        Ok(backend) => Ok(Box::new(backend)),
        Err(reason) if wanted == Transport::Auto => {
            let group = &context.name;
            if reason == DIFFERENT_HOSTS {
                tracing::info!(%group, reason, "TCP instead of shared memory");
            } else {
                tracing::warn!(%group, reason, "TCP instead of shared memory, which is slower");
            }
            Ok(Box::new(Tcp::connect(context, membership)?))
        }
        Err(reason) => Err(CommError::SharedMemory {
            group: context.name.clone(),
            reason,
        }),
    }
}

#[cfg(feature = "nccl")]
fn on_cuda(
    context: Arc<GroupContext>,
    membership: &Membership<'_>,
    ordinal: usize,
) -> Result<Arc<dyn ProcessGroup>> {
    nccl::create(context, membership, ordinal)
}

#[cfg(not(feature = "nccl"))]
fn on_cuda(
    context: Arc<GroupContext>,
    _membership: &Membership<'_>,
    ordinal: usize,
) -> Result<Arc<dyn ProcessGroup>> {
    Err(CommError::Device {
        library: "NCCL",
        reason: format!(
            "this program was built without it, so device {ordinal} cannot be used; build with the feature \"nccl\""
        ),
        site: context.creation(),
    })
}
