//! Collectives of byte strings: names, reports, messages. For small things, now and then: each waits for all ranks twice.

use tandem_tensor::{Device, Kind, Tensor};

use crate::error::Result;
use crate::group::ProcessGroup;

/// Every rank's bytes, on every rank, in group order. `device` is where the group's tensors live.
///
/// # Errors
/// See [`ProcessGroup`].
pub fn all_gather_bytes(
    group: &dyn ProcessGroup,
    bytes: &[u8],
    device: Device,
) -> Result<Vec<Vec<u8>>> {
    let own = Tensor::from_slice(&[bytes.len() as i64]).to_device(device);
    let lengths = Tensor::zeros([group.size() as i64], (Kind::Int64, device));
    group
        .all_gather_into(&lengths, &own, &vec![1; group.size()])?
        .wait()?;
    let mut counts = vec![0i64; group.size()];
    lengths
        .to_device(Device::Cpu)
        .copy_data(&mut counts, group.size());
    let counts: Vec<usize> = counts.into_iter().map(|count| count as usize).collect();

    let total: usize = counts.iter().sum();
    let own = Tensor::from_slice(bytes).to_device(device);
    let all = Tensor::zeros([total as i64], (Kind::Uint8, device));
    group.all_gather_into(&all, &own, &counts)?.wait()?;
    let mut flat = vec![0u8; total];
    all.to_device(Device::Cpu).copy_data(&mut flat, total);
    let mut rest = flat.as_slice();
    let cut = |count: usize| {
        let (one, others) = rest.split_at(count);
        rest = others;
        one.to_vec()
    };
    Ok(counts.into_iter().map(cut).collect())
}

/// The bytes of `root`, a rank of the group, on every rank; what the others pass is ignored.
///
/// # Errors
/// See [`ProcessGroup`].
pub fn broadcast_bytes(
    group: &dyn ProcessGroup,
    bytes: &[u8],
    root: usize,
    device: Device,
) -> Result<Vec<u8>> {
    let own = if group.rank() == root { bytes } else { &[] };
    Ok(all_gather_bytes(group, own, device)?.swap_remove(root))
}
