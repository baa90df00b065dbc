//! What moves a group's data, and which of it a new group gets.

#[cfg(feature = "nccl")]
pub(crate) mod cuda;
#[cfg(feature = "nccl")]
pub(crate) mod device;
#[cfg(feature = "nccl")]
pub(crate) mod nccl;
mod reduce;
mod shm;
mod staged;
mod tcp;

use std::sync::Arc;

use tandem_tensor::Device;
use tandem_tensor::torch::pretend;

#[cfg(feature = "testing")]
pub use tcp::ring_bytes;

use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::cpu::CpuGroup;
use crate::group::process_group::ProcessGroup;
use crate::group::queue::Backend;
use crate::meet::config::Transport;
use crate::meet::membership::Membership;
use crate::meet::point::MeetingPoint;
use crate::transport::shm::{DIFFERENT_HOSTS, SharedMemory};
use crate::transport::staged::{HostStage, Staged};
use crate::transport::tcp::Tcp;

/// Creates this rank's end of a group of at least two ranks, for tensors in host memory or on a CUDA device. The memory of one that
/// is pretended is the host's.
///
/// # Errors
/// See [`World::new_device_group`](crate::World::new_device_group).
pub(crate) fn create(
    context: Arc<GroupContext>,
    point: &Arc<MeetingPoint>,
    membership: &Membership<'_>,
    wanted: Transport,
    device: Device,
) -> Result<Arc<dyn ProcessGroup>> {
    if let Device::Cuda(ordinal) = device
        && !pretend::is_on()
    {
        return on_cuda(context, point, membership, wanted, ordinal);
    }
    let mut backend = on_host(&context, membership, wanted)?;
    if wanted == Transport::Staged {
        let memory = Box::new(HostStage::default());
        backend = Box::new(Staged::new(context.clone(), backend, memory));
    }
    Ok(Arc::new(CpuGroup::new(context, device, backend)))
}

/// Shared memory or TCP.
pub(crate) fn on_host(
    context: &Arc<GroupContext>,
    membership: &Membership<'_>,
    wanted: Transport,
) -> Result<Box<dyn Backend>> {
    if wanted == Transport::Tcp {
        return Ok(Box::new(Tcp::connect(context, membership)?));
    }
    match SharedMemory::join(context, membership)? {
        Ok(backend) => Ok(Box::new(backend)),
        Err(reason) if wanted != Transport::Shm => {
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
use cuda::on_cuda;

#[cfg(not(feature = "nccl"))]
fn on_cuda(
    context: Arc<GroupContext>,
    _point: &Arc<MeetingPoint>,
    _membership: &Membership<'_>,
    _wanted: Transport,
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
