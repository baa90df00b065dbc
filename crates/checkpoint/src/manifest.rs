//! What a checkpoint consists of: the manifest, and the commit record that makes it exist.
//!
//! The format is described in `docs/checkpoint-format.md`.

use std::collections::{BTreeMap, HashMap};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tandem_mesh::ShardSlice;

use crate::digest::Digest;
use crate::error::CheckpointError;
use crate::names::FileName;
use crate::piece::Role;
use crate::train_state::TrainState;

/// The newest format that is read, and the one that is written.
pub const FORMAT_VERSION: u64 = 1;

/// Marks the JSON files as ours.
pub(crate) const FORMAT: &str = "tandem-checkpoint";

/// The manifest's name in the checkpoint's folder.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// The commit record's name. A folder without it is not a checkpoint.
pub(crate) const COMMIT_FILE: &str = "commit.json";

/// The year 9000: names of checkpoints end soon after.
const MAX_TIME_US: i64 = 7030 * 365 * 24 * 3600 * 1_000_000;

/// Bytes of a piece that share one hash: what has to be read to verify any part of them.
pub const CHUNK_BYTES: u64 = 4 << 20;

/// Which slice of which tensor is where, and where the run stood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `tandem-checkpoint`.
    pub format: String,
    /// See [`FORMAT_VERSION`].
    pub format_version: u64,
    /// Bytes of a piece that share one hash.
    pub chunk_bytes: u64,
    /// Where the run stood.
    pub state: TrainState,
    /// The shards.
    pub files: Vec<FileRecord>,
    /// The tensors, by name.
    pub tensors: BTreeMap<String, TensorRecord>,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name in the checkpoint's folder.
    pub name: FileName,
    /// Its size.
    pub bytes: u64,
    /// Digest of all of it.
    pub blake3: Digest,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Its global shape.
    pub shape: Vec<usize>,
    /// Kind of its elements; always `F32` in this version.
    pub dtype: String,
    /// Its pieces, by role. Those of one role hold every element once.
    pub roles: BTreeMap<Role, Vec<PieceRecord>>,
}

/// Where a part of a tensor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceRecord {
    /// The file's name.
    pub file: FileName,
    /// The safetensors key in it.
    pub key: String,
    /// Where the rectangle starts in the tensor, per dimension.
    pub offsets: Vec<usize>,
    /// The rectangle's extent, per dimension.
    pub shape: Vec<usize>,
    /// First element, and the element behind the last, of the flattened rectangle.
    pub flat: [usize; 2],
    /// Position of its first byte in the file.
    pub begin: u64,
    /// Digest of each `chunk_bytes` of it.
    pub chunks: Vec<Digest>,
}

/// The file whose presence makes a folder a checkpoint: small, written last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// Always `tandem-checkpoint`.
    pub format: String,
    /// See [`FORMAT_VERSION`].
    pub format_version: u64,
    /// When the save began, in microseconds since 1970, UTC. Later checkpoints of a run have larger ones.
    pub created_unix_us: i64,
    /// Optimizer steps that were done.
    pub global_step: u64,
    /// Losses and other measurements.
    pub metrics: BTreeMap<String, Value>,
    /// The manifest.
    pub manifest: FileRecord,
}

impl Manifest {
    /// The piece's slice of its tensor.
    pub(crate) fn slice(tensor: &TensorRecord, piece: &PieceRecord) -> ShardSlice {
        ShardSlice {
            global_shape: tensor.shape.clone(),
            offsets: piece.offsets.clone(),
            shape: piece.shape.clone(),
            flat: piece.flat[0]..piece.flat[1],
        }
    }

    /// All pieces, with their tensors.
    pub(crate) fn pieces(
        &self,
    ) -> impl Iterator<Item = (&String, &TensorRecord, &Role, &PieceRecord)> {
        self.tensors.iter().flat_map(|(name, tensor)| {
            let roles = tensor.roles.iter();
            roles.flat_map(move |(role, pieces)| {
                pieces.iter().map(move |piece| (name, tensor, role, piece))
            })
        })
    }

    /// Reads a manifest and checks that what it says is possible, so that nothing after this has to doubt it.
    pub(crate) fn parse(bytes: &[u8], location: &str) -> Result<Self, CheckpointError> {
        let manifest: Self = parse_versioned(bytes, location)?;
        manifest.impossible().map_or(Ok(manifest), |problem| {
            Err(CheckpointError::Damaged {
                location: location.to_owned(),
                problem,
            })
        })
    }

    fn impossible(&self) -> Option<String> {
        if self.chunk_bytes == 0 || !self.chunk_bytes.is_multiple_of(4) {
            return Some(format!("chunks of {} bytes cannot be", self.chunk_bytes));
        }
        let sizes: HashMap<&str, u64> = self
            .files
            .iter()
            .map(|file| (file.name.as_str(), file.bytes))
            .collect();
        for (name, tensor, role, piece) in self.pieces() {
            let here = |problem: &str| Some(format!("{role} of tensor {name:?} {problem}"));
            if tensor.dtype != "F32" {
                return here(&format!("is of kind {}, which is not known", tensor.dtype));
            }
            let Some(&size) = sizes.get(piece.file.as_str()) else {
                return here(&format!("is in {:?}, which is not listed", piece.file));
            };
            if !is_inside(tensor, piece) {
                return here("has a piece outside the tensor");
            }
            let bytes = (piece.flat[1] - piece.flat[0]) as u64 * 4;
            if piece.begin.checked_add(bytes).is_none_or(|end| end > size) {
                return here(&format!("reaches behind the end of {}", piece.file));
            }
            if piece.chunks.len() as u64 != bytes.div_ceil(self.chunk_bytes) {
                return here("has the wrong number of hashes");
            }
        }
        None
    }
}

impl CommitRecord {
    /// Reads a commit record. Its time must be one that a later checkpoint can follow.
    pub(crate) fn parse(bytes: &[u8], location: &str) -> Result<Self, CheckpointError> {
        let commit: Self = parse_versioned(bytes, location)?;
        if (0..MAX_TIME_US).contains(&commit.created_unix_us) {
            return Ok(commit);
        }
        Err(CheckpointError::Damaged {
            location: location.to_owned(),
            problem: format!(
                "{} microseconds since 1970 is no time that it can have been saved at",
                commit.created_unix_us
            ),
        })
    }
}

fn is_inside(tensor: &TensorRecord, piece: &PieceRecord) -> bool {
    let dims = tensor.shape.len();
    let elements = |shape: &[usize]| {
        let product = shape
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n));
        product.filter(|&n| n <= usize::MAX / 4)
    };
    let rectangle_is_inside = piece.offsets.len() == dims
        && piece.shape.len() == dims
        && (0..dims).all(|dim| {
            let end = piece.offsets[dim].checked_add(piece.shape[dim]);
            end.is_some_and(|end| end <= tensor.shape[dim])
        });
    rectangle_is_inside
        && elements(&tensor.shape).is_some()
        && elements(&piece.shape).is_some_and(|n| piece.flat[1] <= n)
        && piece.flat[0] <= piece.flat[1]
}

/// Looks at the version before anything else: a newer file may differ in all the rest.
fn parse_versioned<T: DeserializeOwned>(
    bytes: &[u8],
    location: &str,
) -> Result<T, CheckpointError> {
    #[derive(Deserialize)]
    struct Version {
        format: String,
        format_version: u64,
    }
    let damaged = |problem: String| CheckpointError::Damaged {
        location: location.to_owned(),
        problem,
    };
    let not_json = |error: serde_json::Error| damaged(format!("it cannot be parsed: {error}"));
    let version: Version = serde_json::from_slice(bytes).map_err(not_json)?;
    if version.format != FORMAT {
        return Err(damaged(format!(
            "its format is {:?}, not {FORMAT:?}",
            version.format
        )));
    }
    if version.format_version > FORMAT_VERSION {
        return Err(CheckpointError::NewerFormat {
            location: location.to_owned(),
            found: version.format_version,
            supported: FORMAT_VERSION,
        });
    }
    serde_json::from_slice(bytes).map_err(not_json)
}
