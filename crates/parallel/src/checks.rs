//! Run-time checks that ranks which must agree do agree: silent drift is the worst bug that parallel training has.

use tandem_comm::{ProcessGroup, all_gather_numbers};
use tandem_tensor::{Device, Kind, Tensor, fingerprint};

use crate::error::ParallelError;
use crate::flat_unit::FlatUnit;

/// Every rank of a row must see the same batch: compares a hash over the row, every step (8 bytes a rank).
///
/// # Errors
/// [`ParallelError::DifferentBatches`] names the row's ranks and hashes.
pub fn check_same_batch(
    tp: &dyn ProcessGroup,
    hash: u64,
    step: u64,
    device: Device,
) -> Result<(), ParallelError> {
    let hashes = all_gather_numbers(tp, &[hash as i64], device)?;
    compare_batches(tp, &hashes.concat(), step)
}

/// The row's hashes of the batch, i64 `[ranks of the row]` on `device`, for [`compare_batches`] when they are read. Nothing waits
/// for them.
///
/// # Errors
/// When a peer fails.
pub fn gather_batches(
    tp: &dyn ProcessGroup,
    hash: u64,
    device: Device,
) -> Result<Tensor, ParallelError> {
    let own = Tensor::from_slice(&[hash as i64]).to_device(device);
    let all = Tensor::zeros([tp.size() as i64], (Kind::Int64, device));
    tp.all_gather_into(&all, &own, &vec![1; tp.size()])?
        .wait()?;
    Ok(all)
}

/// Whether the row's hashes are one.
///
/// # Errors
/// As [`check_same_batch`].
pub fn compare_batches(
    tp: &dyn ProcessGroup,
    hashes: &[i64],
    step: u64,
) -> Result<(), ParallelError> {
    if hashes.iter().any(|other| *other != hashes[0]) {
        return Err(ParallelError::DifferentBatches {
            step,
            ranks: tp.ranks().to_vec(),
            hashes: hashes.to_vec(),
        });
    }
    Ok(())
}

/// Parameters that are replicated over a row, and (where the level keeps them whole) over a column, must be equal bit
/// for bit: compares hashes of the compute copies. For experts that are spread, `dp` is the ranks with the same ones.
///
/// # Errors
/// [`ParallelError::Drift`] names the parameter and two ranks that differ.
pub fn check_replicas<'a>(
    units: impl IntoIterator<Item = &'a FlatUnit>,
    tp: &dyn ProcessGroup,
    dp: &dyn ProcessGroup,
    step: u64,
    device: Device,
) -> Result<(), ParallelError> {
    for unit in units {
        let Some(flat) = unit.kept_parameters() else {
            continue;
        };
        let layout = unit.layout();
        let hash = |range: &std::ops::Range<usize>| {
            fingerprint::of(&flat.narrow(0, range.start as i64, range.len() as i64))
        };
        let names: Vec<&str> = layout.replicas.iter().map(|r| r.name.as_str()).collect();
        let over_row: Vec<Option<i64>> = layout
            .replicas
            .iter()
            .map(|r| r.flat.as_ref().map(hash))
            .collect();
        compare(tp, &names, &over_row, step, device)?;

        let names: Vec<&str> = layout.params.iter().map(|p| p.spec.name.as_str()).collect();
        let over_column: Vec<Option<i64>> = layout
            .params
            .iter()
            .map(|p| Some(hash(&p.span())))
            .collect();
        compare(dp, &names, &over_column, step, device)?;
    }
    Ok(())
}

/// Compares one optional hash per name over the group; `None` where a rank holds no copy.
fn compare(
    group: &dyn ProcessGroup,
    names: &[&str],
    hashes: &[Option<i64>],
    step: u64,
    device: Device,
) -> Result<(), ParallelError> {
    if group.size() == 1 || hashes.is_empty() {
        return Ok(());
    }
    // Presence and hash travel as two numbers, so that no hash value is special.
    let packed: Vec<i64> = hashes
        .iter()
        .flat_map(|hash| [i64::from(hash.is_some()), hash.unwrap_or(0)])
        .collect();
    let all = all_gather_numbers(group, &packed, device)?;
    for (index, name) in names.iter().enumerate() {
        let mut holders = all
            .iter()
            .enumerate()
            .filter(|(_, packed)| packed[2 * index] == 1)
            .map(|(rank, packed)| (rank, packed[2 * index + 1]));
        let Some((first, expected)) = holders.next() else {
            continue;
        };
        if let Some((other, _)) = holders.find(|(_, hash)| *hash != expected) {
            return Err(ParallelError::Drift {
                tensor: (*name).to_owned(),
                step,
                rank_a: group.ranks()[first],
                rank_b: group.ranks()[other],
            });
        }
    }
    Ok(())
}
