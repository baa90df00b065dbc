//! Making a checkpoint of the shards that all ranks have written.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tandem_mesh::ShardSlice;

use crate::coverage::{self, CoverageError, CoverageProblem};
use crate::digest::Digest;
use crate::error::CheckpointError;
use crate::manifest::{
    CHUNK_BYTES, COMMIT_FILE, CommitRecord, FORMAT, FORMAT_VERSION, FileRecord, MANIFEST_FILE,
    Manifest, PieceRecord, TensorRecord,
};
use crate::names::FileName;
use crate::piece::Role;
use crate::shard::{ShardReport, WrittenPiece};
use crate::store::{MAX_READ_BYTES, PutMode, Store, StoreError, StoreErrorKind, join};
use crate::train_state::TrainState;

/// A checkpoint that is to be written: its folder, agreed on by all ranks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCheckpoint {
    /// The folder's name.
    pub folder: String,
    /// When the save began, in microseconds since 1970, UTC.
    pub created_unix_us: i64,
}

impl NewCheckpoint {
    /// A checkpoint in a folder that somebody else named, such as Ray.
    pub fn in_folder(folder: impl Into<String>) -> Self {
        Self {
            folder: folder.into(),
            created_unix_us: Timestamp::now().as_microsecond(),
        }
    }
}

/// A tensor that the checkpoint must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its Hugging Face name.
    pub name: String,
    /// Its global shape.
    pub shape: Vec<usize>,
    /// What of it.
    pub roles: Vec<Role>,
}

/// Checks that the shards hold every element of `tensors` exactly once, and that they can be seen from here; then writes
/// the manifest and, last, the commit record.
///
/// # Errors
/// Pieces that do not make a whole, shards that are not there, or a store that refuses; then there is no checkpoint, and the
/// folder may be removed.
pub fn commit(
    store: &dyn Store,
    new: &NewCheckpoint,
    tensors: &[TensorSpec],
    mut reports: Vec<ShardReport>,
    state: TrainState,
) -> Result<Manifest, CheckpointError> {
    reports.sort_by_key(|report| report.rank);
    let folder = new.folder.as_str();
    check_coverage(tensors, &reports)?;
    check_visibility(store, folder, &reports)?;
    let manifest = assemble(tensors, reports, state);

    let manifest_json = to_json(store, &join(folder, MANIFEST_FILE), &manifest)?;
    check_readable(
        store,
        &join(folder, MANIFEST_FILE),
        manifest_json.len() as u64,
    )?;
    let record = CommitRecord {
        format: FORMAT.to_owned(),
        format_version: FORMAT_VERSION,
        created_unix_us: new.created_unix_us,
        global_step: manifest.state.global_step,
        metrics: manifest.state.metrics.clone(),
        manifest: FileRecord {
            name: FileName::fixed(MANIFEST_FILE),
            bytes: manifest_json.len() as u64,
            blake3: Digest::of(&manifest_json),
        },
    };
    let commit_path = join(folder, COMMIT_FILE);
    let record_json = to_json(store, &commit_path, &record)?;
    put_new(store, &join(folder, MANIFEST_FILE), &manifest_json)?;
    put_new(store, &commit_path, &record_json)?;
    Ok(manifest)
}

/// A list that nobody may read would make a checkpoint that cannot be continued from.
fn check_readable(store: &dyn Store, path: &str, bytes: u64) -> Result<(), StoreError> {
    if bytes <= MAX_READ_BYTES {
        return Ok(());
    }
    let limit = MAX_READ_BYTES >> 20;
    Err(StoreError {
        operation: "write",
        location: store.locate(path),
        kind: StoreErrorKind::TooLarge,
        source: format!(
            "the list of all pieces has {bytes} bytes, and may have {limit} MiB; use fewer ranks"
        )
        .into(),
    })
}

/// Writes a file that is never replaced: another checkpoint in this folder stays what it is.
fn put_new(store: &dyn Store, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
    match store.put(path, bytes, PutMode::CreateNew) {
        // The answer to a first attempt may have been lost on its way, and the retry then found our own file.
        Err(error) if error.is_already_exists() && store.read(path)? == bytes => Ok(()),
        result => result,
    }
}

fn check_coverage(tensors: &[TensorSpec], reports: &[ShardReport]) -> Result<(), CoverageError> {
    type Pieces<'a> = Vec<(String, &'a ShardSlice)>;
    let mut written: HashMap<(&str, &Role), Pieces<'_>> = HashMap::new();
    for report in reports {
        for piece in &report.pieces {
            written
                .entry((piece.tensor.as_str(), &piece.role))
                .or_default()
                .push((format!("rank {}", report.rank), &piece.slice));
        }
    }
    let error = |tensor: &str, role: &Role, problem| CoverageError {
        tensor: tensor.to_owned(),
        role: role.clone(),
        problem,
    };
    for spec in tensors {
        for role in &spec.roles {
            let pieces = written
                .remove(&(spec.name.as_str(), role))
                .unwrap_or_default();
            coverage::check(&spec.shape, &pieces)
                .map_err(|problem| error(&spec.name, role, problem))?;
        }
    }
    match written.iter().min_by_key(|(key, _)| *key) {
        None => Ok(()),
        Some((&(tensor, role), pieces)) => {
            let writer = pieces
                .first()
                .map(|(writer, _)| writer.clone())
                .unwrap_or_default();
            Err(error(tensor, role, CoverageProblem::Unexpected { writer }))
        }
    }
}

/// A shard that only its writer's host can see would make a checkpoint that cannot be read.
fn check_visibility(
    store: &dyn Store,
    folder: &str,
    reports: &[ShardReport],
) -> Result<(), CheckpointError> {
    let written: Vec<(usize, &FileRecord)> = reports
        .iter()
        .filter_map(|report| Some((report.rank, report.file.as_ref()?)))
        .collect();
    let names: Vec<&str> = written.iter().map(|(_, file)| file.name.as_str()).collect();
    for ((rank, file), size) in written.iter().zip(store.sizes(folder, &names)?) {
        let problem = match size {
            Some(bytes) if bytes == file.bytes => continue,
            Some(bytes) => format!("has {bytes} bytes instead of {}", file.bytes),
            None => "is not there".to_owned(),
        };
        return Err(CheckpointError::NotShared {
            location: store.locate(&join(folder, &file.name)),
            rank: *rank,
            problem,
        });
    }
    Ok(())
}

fn assemble(tensors: &[TensorSpec], reports: Vec<ShardReport>, state: TrainState) -> Manifest {
    let mut records: BTreeMap<String, TensorRecord> = tensors
        .iter()
        .map(|spec| {
            let record = TensorRecord {
                shape: spec.shape.clone(),
                dtype: "F32".to_owned(),
                roles: spec
                    .roles
                    .iter()
                    .map(|role| (role.clone(), Vec::new()))
                    .collect(),
            };
            (spec.name.clone(), record)
        })
        .collect();
    let mut files = Vec::new();
    for report in reports {
        let Some(file) = report.file else { continue };
        for piece in report.pieces {
            let WrittenPiece {
                tensor,
                role,
                slice,
                key,
                begin,
                chunks,
            } = piece;
            let record = PieceRecord {
                file: file.name.clone(),
                key,
                offsets: slice.offsets,
                shape: slice.shape,
                flat: [slice.flat.start, slice.flat.end],
                begin,
                chunks,
            };
            // Coverage was checked, so every piece belongs to a tensor of the list.
            if let Some(tensor) = records.get_mut(&tensor) {
                tensor.roles.entry(role).or_default().push(record);
            }
        }
        files.push(file);
    }
    Manifest {
        format: FORMAT.to_owned(),
        format_version: FORMAT_VERSION,
        chunk_bytes: CHUNK_BYTES,
        state,
        files,
        tensors: records,
    }
}

fn to_json<T: Serialize>(store: &dyn Store, path: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError {
        operation: "write",
        location: store.locate(path),
        kind: StoreErrorKind::Other,
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalStore;

    #[test]
    fn a_list_that_could_not_be_read_again_is_not_written() {
        let store = LocalStore::new(".");
        check_readable(&store, MANIFEST_FILE, MAX_READ_BYTES).unwrap();
        let refused = check_readable(&store, MANIFEST_FILE, MAX_READ_BYTES + 1).unwrap_err();
        assert_eq!(refused.kind, StoreErrorKind::TooLarge);
        assert!(refused.to_string().contains("fewer ranks"), "{refused}");
    }
}
