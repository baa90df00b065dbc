//! Finding the checkpoints of an experiment, and what saves have left half done.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use tandem_files::PARTIAL_SUFFIX;

use super::CheckpointEntry;
use super::manager_snapshot::ManagerSnapshot;
use crate::error::CheckpointError;
use crate::manifest::{COMMIT_FILE, MANIFEST_FILE};
use crate::names::{CHECKPOINT_PREFIX, CheckpointName};
use crate::reader::read_commit;
use crate::shard::is_shard_name;
use crate::store::{Listed, Store, StoreError, join};

/// The time in a folder's name: Ray's pattern, though Ray puts local time into it.
const TIME_FORMAT: &str = "%Y-%m-%d_%H-%M-%S%.6f";

/// What is there.
#[derive(Debug)]
pub(super) struct Found {
    /// Oldest first.
    pub checkpoints: Vec<CheckpointEntry>,
    /// Folders of saves that were cut off.
    pub torn: Vec<CheckpointName>,
    /// What is left of checkpoints whose deletion was begun.
    pub deleting: Vec<CheckpointName>,
}

/// Looks through the root of `store`. What the run has not made is left alone: only a folder of its own, no link to one,
/// with the name that a save gives, or one that the snapshot lists, is the run's. So a copy under another name, a
/// checkpoint of elsewhere and a user's folder are never continued from, listed or deleted.
///
/// The snapshot is a file that anybody may have written: what it says is being deleted is believed of folders only that
/// have both the name and the content of a checkpoint of ours.
pub(super) fn scan(
    store: &dyn Store,
    snapshot: &ManagerSnapshot,
) -> Result<Found, CheckpointError> {
    let mut found = Found {
        checkpoints: Vec::new(),
        torn: Vec::new(),
        deleting: Vec::new(),
    };
    for listed in store.list("")? {
        let is_folder = listed.is_folder();
        let Ok(name) = CheckpointName::new(listed.name) else {
            continue;
        };
        if !is_folder {
            continue;
        }
        let named = time_in(&name);
        let is_going = named.is_some() && snapshot.deleting.contains(&name);
        match entry(store, &name) {
            Ok(entry) if named == Some(entry.created_unix_us) && is_going => {
                found.deleting.push(name);
            }
            Ok(entry) if named == Some(entry.created_unix_us) || snapshot.lists(&name) => {
                found.checkpoints.push(entry);
            }
            // A copy, or a checkpoint of another run.
            Ok(_) => {}
            Err(CheckpointError::NotCommitted { .. }) => {
                if named.is_some() && is_left_by_a_save(store, &name)? {
                    let leftovers = if is_going {
                        &mut found.deleting
                    } else {
                        &mut found.torn
                    };
                    leftovers.push(name);
                }
            }
            Err(error @ CheckpointError::Store(_)) => return Err(error),
            Err(problem) if named.is_some() || snapshot.lists(&name) => {
                found.checkpoints.push(CheckpointEntry {
                    created_unix_us: named.unwrap_or(i64::MIN),
                    name,
                    global_step: 0,
                    metrics: Default::default(),
                    problem: Some(problem.to_string()),
                });
            }
            Err(_) => {}
        }
    }
    let checkpoints = &mut found.checkpoints;
    // A save that was cut off before it was listed is newer than all that are. An older one was put there by somebody.
    let newest_listed = checkpoints
        .iter()
        .filter(|entry| snapshot.lists(&entry.name))
        .map(|entry| entry.created_unix_us)
        .max();
    checkpoints.retain(|entry| {
        snapshot.lists(&entry.name)
            || newest_listed.is_none_or(|newest| entry.created_unix_us > newest)
    });
    checkpoints.sort_by(|a, b| (a.created_unix_us, &a.name).cmp(&(b.created_unix_us, &b.name)));
    Ok(found)
}

/// The name of the checkpoint whose save began at this time.
pub(super) fn folder_name(created_unix_us: i64) -> String {
    let time = Timestamp::from_microsecond(created_unix_us).unwrap_or(Timestamp::MAX);
    format!("{CHECKPOINT_PREFIX}{}", time.strftime(TIME_FORMAT))
}

fn time_in(name: &str) -> Option<i64> {
    let time = DateTime::strptime(TIME_FORMAT, name.strip_prefix(CHECKPOINT_PREFIX)?).ok()?;
    Some(TimeZone::UTC.to_timestamp(time).ok()?.as_microsecond())
}

fn entry(store: &dyn Store, name: &CheckpointName) -> Result<CheckpointEntry, CheckpointError> {
    let commit = read_commit(store, name)?;
    Ok(CheckpointEntry {
        name: name.clone(),
        created_unix_us: commit.created_unix_us,
        global_step: commit.global_step,
        metrics: commit.metrics,
        problem: None,
    })
}

/// True when the folder holds nothing but what our saves write. Anything else belongs to somebody else.
fn is_left_by_a_save(store: &dyn Store, folder: &str) -> Result<bool, StoreError> {
    let listed = store.list(folder)?;
    Ok(listed.iter().all(|l| l.is_file() && is_ours(&l.name)))
}

/// Whether a save writes files of this name into a checkpoint's folder.
fn is_ours(name: &str) -> bool {
    let name = name.strip_suffix(PARTIAL_SUFFIX).unwrap_or(name);
    is_shard_name(name) || name == MANIFEST_FILE || name == COMMIT_FILE
}

/// Removes what saves have written into the folder, and the folder unless somebody else has put something there. The commit
/// record goes first: from then on the rest is no checkpoint, however much of it is left.
pub(super) fn delete_checkpoint(
    store: &dyn Store,
    name: &CheckpointName,
) -> Result<(), StoreError> {
    let is_own = |listed: &Listed| listed.name == name.as_str() && listed.is_folder();
    if !store.list("")?.iter().any(is_own) {
        return Ok(());
    }
    store.delete(&join(name, COMMIT_FILE))?;
    store.delete_folder(name, &is_ours)
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
