//! Writing one rank's pieces as one safetensors file.

use std::collections::HashMap;
use std::{panic, thread};

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use tandem_mesh::ShardSlice;

use crate::digest::Digest;
use crate::error::CheckpointError;
use crate::header::Header;
use crate::manifest::{CHUNK_BYTES, FileRecord};
use crate::names::FileName;
use crate::piece::{Piece, Role};
use crate::store::{Store, StoreError, StoreErrorKind, join};

/// What a rank wrote. Rank 0 gathers the reports of all (as JSON, say) and commits them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardReport {
    /// Who wrote it.
    pub rank: usize,
    /// The file; `None` when the rank owns nothing.
    pub file: Option<FileRecord>,
    /// What is in it.
    pub pieces: Vec<WrittenPiece>,
}

/// A piece in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WrittenPiece {
    /// The tensor's Hugging Face name.
    pub tensor: String,
    /// What of it.
    pub role: Role,
    /// Which part.
    pub slice: ShardSlice,
    /// The safetensors key.
    pub key: String,
    /// Position of its first byte in the file.
    pub begin: u64,
    /// Digest of each [`CHUNK_BYTES`] of it.
    pub chunks: Vec<Digest>,
}

/// Writes `pieces` as the file of `rank` in `folder`. When this returns, they are durable, though not a checkpoint yet.
///
/// # Errors
/// A piece whose data do not fill its slice, or a store that refuses; then no file appears.
pub fn write_shard(
    store: &dyn Store,
    folder: &str,
    rank: usize,
    pieces: &[Piece<'_>],
) -> Result<ShardReport, CheckpointError> {
    // Of an empty slice there is nothing to keep.
    let pieces: Vec<&Piece<'_>> = pieces.iter().filter(|p| !p.slice.is_empty()).collect();
    if let Some(piece) = pieces.iter().find(|p| p.data.len() != p.slice.numel()) {
        return Err(CheckpointError::PieceSize {
            tensor: piece.tensor.to_owned(),
            role: piece.role.clone(),
            expected: piece.slice.numel(),
            found: piece.data.len(),
        });
    }
    if pieces.is_empty() {
        return Ok(ShardReport {
            rank,
            file: None,
            pieces: Vec::new(),
        });
    }

    let name = shard_name(rank);
    let path = join(folder, &name);
    let keys = keys(&pieces);
    let shapes: Vec<Vec<usize>> = pieces
        .iter()
        .map(|piece| stored_shape(&piece.slice))
        .collect();
    let specs = keys
        .iter()
        .zip(&shapes)
        .map(|(key, shape)| (key.as_str(), Dtype::F32, shape.as_slice()));
    let (first, header) = Header::encode(specs).map_err(|problem| StoreError {
        operation: "write",
        location: store.locate(&path),
        kind: StoreErrorKind::Other,
        source: problem.into(),
    })?;
    let size = header.entries.last().map_or(0, |entry| entry.bytes.end);

    // Hashing takes about as long as writing, and neither needs the other.
    let (digests, written) = thread::scope(|scope| {
        let hash = || Digests::of(&first, &pieces);
        let hashing = thread::Builder::new().spawn_scoped(scope, hash);
        let written = write_file(store, &path, size, &first, &pieces);
        let digests = match hashing {
            Ok(thread) => thread
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic)),
            // The system refuses another thread: one after the other, then.
            Err(_) => hash(),
        };
        (digests, written)
    });
    written?;
    let pieces = pieces
        .iter()
        .zip(keys)
        .zip(&header.entries)
        .zip(digests.chunks)
        .map(|(((piece, key), entry), chunks)| WrittenPiece {
            tensor: piece.tensor.to_owned(),
            role: piece.role.clone(),
            slice: piece.slice.clone(),
            key,
            begin: entry.bytes.start,
            chunks,
        })
        .collect();
    Ok(ShardReport {
        rank,
        file: Some(FileRecord {
            name,
            bytes: size,
            blake3: digests.file,
        }),
        pieces,
    })
}

fn shard_name(rank: usize) -> FileName {
    FileName::numbered(SHARD_PREFIX, rank, SHARD_SUFFIX)
}

fn write_file(
    store: &dyn Store,
    path: &str,
    size: u64,
    first: &[u8],
    pieces: &[&Piece<'_>],
) -> Result<(), StoreError> {
    let mut upload = store.create(path, size)?;
    upload.write(first)?;
    for bytes in pieces.iter().flat_map(|piece| chunks(piece)) {
        upload.write(bytes)?;
    }
    upload.finish()
}

/// What a file is known by.
struct Digests {
    file: Digest,
    /// Of each piece, its chunks'.
    chunks: Vec<Vec<Digest>>,
}

impl Digests {
    fn of(first: &[u8], pieces: &[&Piece<'_>]) -> Self {
        let mut file = blake3::Hasher::new();
        file.update(first);
        let mut digest = |chunk: &[u8]| {
            file.update(chunk);
            Digest::of(chunk)
        };
        let chunks = pieces
            .iter()
            .map(|piece| chunks(piece).map(&mut digest).collect())
            .collect();
        Self {
            file: Digest::finish(&file),
            chunks,
        }
    }
}

/// The bytes of a piece in the parts that have hashes of their own.
fn chunks<'a>(piece: &Piece<'a>) -> impl Iterator<Item = &'a [u8]> {
    let chunks = piece.data.chunks(CHUNK_BYTES as usize / size_of::<f32>());
    chunks.map(bytemuck::cast_slice)
}

const SHARD_PREFIX: &str = "shard-";
const SHARD_SUFFIX: &str = ".safetensors";

/// Whether a shard may have this name.
pub(crate) fn is_shard_name(name: &str) -> bool {
    let rank = name
        .strip_prefix(SHARD_PREFIX)
        .and_then(|rest| rest.strip_suffix(SHARD_SUFFIX));
    rank.is_some_and(|rank| rank.len() >= 5 && rank.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `role.tensor`, with a number where a rank owns several pieces of one tensor.
fn keys(pieces: &[&Piece<'_>]) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    pieces
        .iter()
        .map(|piece| {
            let key = format!("{}.{}", piece.role, piece.tensor);
            let count = seen.entry(key.clone()).or_default();
            *count += 1;
            match *count {
                1 => key,
                number => format!("{key}#{number}"),
            }
        })
        .collect()
}

/// A whole rectangle keeps its shape, for whoever opens the file; a part of one is a list of elements.
fn stored_shape(slice: &ShardSlice) -> Vec<usize> {
    if slice.numel() == slice.rect_numel() {
        slice.shape.clone()
    } else {
        vec![slice.numel()]
    }
}
