//! Finding the checkpoints of an experiment, and what saves have left half done.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::CheckpointEntry;
use crate::error::CheckpointError;
use crate::manifest::{COMMIT_FILE, MANIFEST_FILE};
use crate::reader::read_commit;
use crate::shard::is_shard_name;
use crate::store::{Store, StoreError};

/// All checkpoint folders begin with this, as Ray's do.
pub const PREFIX: &str = "checkpoint_";

/// The time in a folder's name: Ray's pattern, though Ray puts local time into it.
const TIME_FORMAT: &str = "%Y-%m-%d_%H-%M-%S%.6f";

/// What is there.
#[derive(Debug)]
pub(super) struct Found {
    /// Oldest first.
    pub checkpoints: Vec<CheckpointEntry>,
    /// Folders of saves and deletions that were cut off.
    pub torn: Vec<String>,
}

/// Looks through the root of `store`, passing over the folders in `deleting`. Folders that others have made are left alone.
pub(super) fn scan(store: &dyn Store, deleting: &[String]) -> Result<Found, CheckpointError> {
    let mut found = Found {
        checkpoints: Vec::new(),
        torn: Vec::new(),
    };
    for listed in store.list("")? {
        let name = listed.name;
        if listed.size.is_some() || !name.starts_with(PREFIX) || deleting.contains(&name) {
            continue;
        }
        match entry(store, &name) {
            Ok(entry) => found.checkpoints.push(entry),
            Err(CheckpointError::NotCommitted { .. }) if is_left_by_a_save(store, &name)? => {
                found.torn.push(name);
            }
            Err(CheckpointError::NotCommitted { .. }) => {}
            Err(error @ CheckpointError::Store(_)) => return Err(error),
            Err(problem) => found.checkpoints.push(CheckpointEntry {
                created_unix_us: time_in(&name).unwrap_or(i64::MIN),
                name,
                global_step: 0,
                metrics: Default::default(),
                problem: Some(problem.to_string()),
            }),
        }
    }
    let checkpoints = &mut found.checkpoints;
    checkpoints.sort_by(|a, b| (a.created_unix_us, &a.name).cmp(&(b.created_unix_us, &b.name)));
    Ok(found)
}

/// The name of the checkpoint whose save began at this time.
pub(super) fn folder_name(created_unix_us: i64) -> String {
    let time = Timestamp::from_microsecond(created_unix_us).unwrap_or(Timestamp::MAX);
    format!("{PREFIX}{}", time.strftime(TIME_FORMAT))
}

fn time_in(name: &str) -> Option<i64> {
    let time = DateTime::strptime(TIME_FORMAT, name.strip_prefix(PREFIX)?).ok()?;
    Some(TimeZone::UTC.to_timestamp(time).ok()?.as_microsecond())
}

fn entry(store: &dyn Store, name: &str) -> Result<CheckpointEntry, CheckpointError> {
    let commit = read_commit(store, name)?;
    Ok(CheckpointEntry {
        name: name.to_owned(),
        created_unix_us: commit.created_unix_us,
        global_step: commit.global_step,
        metrics: commit.metrics,
        problem: None,
    })
}

/// True when the folder holds nothing but what our saves write. Anything else belongs to somebody else.
fn is_left_by_a_save(store: &dyn Store, folder: &str) -> Result<bool, StoreError> {
    let is_ours = |name: &str| {
        is_shard_name(name) || name.starts_with(MANIFEST_FILE) || name.starts_with(COMMIT_FILE)
    };
    let listed = store.list(folder)?;
    Ok(listed.iter().all(|l| l.size.is_some() && is_ours(&l.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sortable_and_say_when() {
        let name = folder_name(1_764_023_340_000_001);
        assert_eq!(name, "checkpoint_2025-11-24_22-29-00.000001");
        assert_eq!(time_in(&name), Some(1_764_023_340_000_001));
        assert!(folder_name(1_764_023_340_999_999) > name);
        assert!(folder_name(1_764_023_341_000_000) > folder_name(1_764_023_340_999_999));
        assert_eq!(time_in("checkpoint_000001"), None);
    }
}
