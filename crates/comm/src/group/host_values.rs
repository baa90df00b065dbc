//! Collectives of what is on the host: numbers, names, reports. For small things, now and then.

use tandem_tensor::{Device, HostElement, Tensor};

use crate::error::Result;
use crate::group::process_group::ProcessGroup;

/// Every rank's numbers (of all ranks as many), on every rank, in group order. `device` is where the group's tensors live.
///
/// # Errors
/// See [`ProcessGroup`].
pub fn all_gather_numbers<T: HostElement>(
    group: &dyn ProcessGroup,
    own: &[T],
    device: Device,
) -> Result<Vec<Vec<T>>> {
    all_gather(group, own, &vec![own.len(); group.size()], device)
}

/// Every rank's bytes, however many, on every rank, in group order. Waits for all ranks twice.
///
/// # Errors
/// See [`ProcessGroup`].
pub fn all_gather_bytes(
    group: &dyn ProcessGroup,
    bytes: &[u8],
    device: Device,
) -> Result<Vec<Vec<u8>>> {
    let lengths = all_gather_numbers(group, &[bytes.len() as i64], device)?;
    let counts: Vec<usize> = lengths.iter().map(|length| length[0] as usize).collect();
    all_gather(group, bytes, &counts, device)
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

fn all_gather<T: HostElement>(
    group: &dyn ProcessGroup,
    own: &[T],
    counts: &[usize],
    device: Device,
) -> Result<Vec<Vec<T>>> {
    if group.size() == 1 {
        // On a device it would be written, read, and waited for.
        group.check()?;
        return Ok(vec![own.to_vec()]);
    }
    let total: usize = counts.iter().sum();
    let own = Tensor::from_slice(own).to_device(device);
    let all = Tensor::zeros([total as i64], (T::KIND, device));
    group.all_gather_into(&all, &own, counts)?.wait()?;
    let mut flat = vec![T::ZERO; total];
    all.to_device(Device::Cpu).copy_data(&mut flat, total);
    group.check()?;
    let mut rest = flat.as_slice();
    let cut = |count: &usize| {
        let (one, others) = rest.split_at(*count);
        rest = others;
        one.to_vec()
    };
    Ok(counts.iter().map(cut).collect())
}
