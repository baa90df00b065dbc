//! Groups of CUDA devices: over NCCL where it connects them, else by way of host memory.

mod staging;

use std::collections::HashSet;
use std::sync::Arc;

use tandem_tensor::Device;

use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::process_group::ProcessGroup;
use crate::meet::board::Board;
use crate::meet::config::Transport;
use crate::meet::membership::Membership;
use crate::meet::point::MeetingPoint;
use crate::transport::cuda::staging::StagedGroup;
use crate::transport::device::{CudaDevice, words};
use crate::transport::nccl;
use crate::transport::nccl::library::Library;
use crate::transport::on_host;
use crate::transport::shm::host_identity;

/// This rank's end of a group on `Device::Cuda(ordinal)`.
pub(super) fn on_cuda(
    context: Arc<GroupContext>,
    point: &Arc<MeetingPoint>,
    membership: &Membership<'_>,
    wanted: Transport,
    ordinal: usize,
) -> Result<Arc<dyn ProcessGroup>> {
    let cuda = open(&context, ordinal)?;
    if wanted != Transport::Staged {
        match by_nccl(&context, membership, &cuda)? {
            Ok(library) => {
                let key = membership.key();
                let board = Board::new(point.clone(), key, context.rank, context.creation());
                let device = (cuda, ordinal);
                let group = nccl::create(context, membership, board, device, library)?;
                return Ok(Arc::new(group));
            }
            Err(reason) => tracing::warn!(
                group = %context.name,
                reason,
                "collectives go through host memory instead of NCCL, which is slower; --transport staged asks for that"
            ),
        }
    }
    let device = (cuda, ordinal);
    Ok(Arc::new(staged(context, membership, wanted, device)?))
}

/// The device of a group, opened.
pub(crate) fn open(context: &GroupContext, ordinal: usize) -> Result<CudaDevice> {
    CudaDevice::open(ordinal).map_err(|reason| CommError::Device {
        library: "CUDA",
        reason,
        site: context.creation(),
    })
}

/// A group whose collectives go through host memory, and from there as `wanted` says.
pub(crate) fn staged(
    context: Arc<GroupContext>,
    membership: &Membership<'_>,
    wanted: Transport,
    (cuda, ordinal): (CudaDevice, usize),
) -> Result<StagedGroup> {
    let inner = on_host(&context, membership, wanted)?;
    let device = Device::Cuda(ordinal);
    Ok(StagedGroup::new(context, device, cuda, inner))
}

/// NCCL, or why it cannot connect these members. All members come to the same result.
fn by_nccl(
    context: &GroupContext,
    membership: &Membership<'_>,
    cuda: &CudaDevice,
) -> Result<Result<Library, String>> {
    let library = Library::open();
    let identity = cuda.identity().map_err(|error| words(&error));
    let own = match (&library, identity) {
        (Ok(_), Ok(device)) => format!("{} {device}", host_identity().unwrap_or_default()),
        (Err(reason), _) => format!("{NO}{reason}"),
        (_, Err(reason)) => format!("{NO}which GPU it has: {reason}"),
    };
    let all = membership.exchange("device", &own)?;
    Ok(match obstacle(&all, &context.ranks) {
        Some(reason) => Err(reason),
        None => library,
    })
}

/// What a member without NCCL says instead of which device it has.
const NO: &str = "no ";

/// Why NCCL cannot connect members that say this of themselves.
fn obstacle(all: &[String], ranks: &[usize]) -> Option<String> {
    let mut seen = HashSet::new();
    all.iter().zip(ranks).find_map(|(said, rank)| {
        if let Some(reason) = said.strip_prefix(NO) {
            return Some(format!("rank {rank}: {reason}"));
        }
        let is_shared = !seen.insert(said);
        is_shared.then(|| format!("rank {rank} shares its GPU with another rank"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_gpus_and_missing_libraries_are_obstacles() {
        let of = |said: &[&str]| {
            let all: Vec<String> = said.iter().map(|text| (*text).to_owned()).collect();
            obstacle(&all, &[4, 7, 9][..said.len()])
        };
        assert_eq!(of(&["host gpu-0", "host gpu-1", "other gpu-0"]), None);
        let shared = of(&["host gpu-0", "host gpu-1", "host gpu-0"]);
        assert_eq!(
            shared.as_deref(),
            Some("rank 9 shares its GPU with another rank")
        );
        let missing = of(&["host gpu-0", "no library was found"]);
        assert_eq!(missing.as_deref(), Some("rank 7: library was found"));
    }
}
