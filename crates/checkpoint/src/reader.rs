//! Reading a checkpoint from any mesh.

mod chunks;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::{fmt, panic, thread, vec};

use parking_lot::Mutex;
use tandem_mesh::ShardSlice;

use crate::digest::Digest;
use crate::error::CheckpointError;
use crate::manifest::{COMMIT_FILE, CommitRecord, MANIFEST_FILE, Manifest, PieceRecord};
use crate::piece::Role;
use crate::store::{ReadAt, Store, StoreError, join};
use crate::train_state::TrainState;
use chunks::{chunks_of, in_parts};

/// What a commit record may have; it holds a few measurements.
const MAX_COMMIT_BYTES: u64 = 16 << 20;

/// Bytes of an `f32`.
const ELEMENT_BYTES: usize = 4;

/// An open checkpoint.
pub struct Reader {
    store: Arc<dyn Store>,
    folder: String,
    manifest: Manifest,
    files: Mutex<HashMap<String, Arc<dyn ReadAt>>>,
}

/// One slice to read, see [`Reader::read_many`].
#[derive(Debug)]
pub struct ReadRequest<'a> {
    /// The tensor's Hugging Face name.
    pub tensor: &'a str,
    /// What of it.
    pub role: Role,
    /// Which part.
    pub slice: ShardSlice,
    /// Where its elements go.
    pub out: &'a mut [f32],
}

impl Reader {
    /// Opens the checkpoint in `folder` and checks the manifest, and that all shards are there with their full size.
    ///
    /// # Errors
    /// There is no commit record, a newer program wrote it, the manifest is damaged, or a shard is missing or cut short.
    pub fn open(store: Arc<dyn Store>, folder: &str) -> Result<Self, CheckpointError> {
        let manifest = read_manifest(store.as_ref(), folder)?;
        let reader = Self {
            store,
            folder: folder.to_owned(),
            manifest,
            files: Mutex::default(),
        };
        reader.check_sizes()?;
        Ok(reader)
    }

    /// What the checkpoint consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the run stood.
    pub fn state(&self) -> &TrainState {
        &self.manifest.state
    }

    /// The checkpoint's full name, for messages.
    pub fn location(&self) -> String {
        self.store.locate(&self.folder)
    }

    /// Reads `slice` of a tensor, whatever slices it was written in. Only the chunks that hold a part of the slice are
    /// read, and each is held against its hash first.
    ///
    /// # Errors
    /// The checkpoint does not hold this, or with another shape; a failed read; or bytes that are not those that were
    /// written. The contents of `out` are then undefined.
    ///
    /// # Panics
    /// When `out` has another number of elements than `slice`.
    pub fn read(
        &self,
        tensor: &str,
        role: &Role,
        slice: &ShardSlice,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        self.read_many(vec![ReadRequest {
            tensor,
            role: role.clone(),
            slice: slice.clone(),
            out,
        }])
    }

    /// Reads many slices, several at a time.
    ///
    /// # Errors
    /// As [`Reader::read`]; the first that occurs.
    ///
    /// # Panics
    /// As [`Reader::read`].
    pub fn read_many(&self, requests: Vec<ReadRequest<'_>>) -> Result<(), CheckpointError> {
        for ReadRequest {
            tensor, slice, out, ..
        } in &requests
        {
            assert_eq!(out.len(), slice.numel(), "buffer for a slice of {tensor}");
        }
        let parts: Vec<ReadRequest<'_>> = requests.into_iter().flat_map(in_parts).collect();
        let threads = self.store.concurrent_reads().min(parts.len());
        let queue = Mutex::new(parts.into_iter());
        if threads <= 1 {
            return self.read_from(&queue);
        }
        thread::scope(|scope| {
            // A thread that the system refuses is missed by nobody: the others, and this one, take its parts.
            let others: Vec<_> = (1..threads)
                .map_while(|_| {
                    let thread = thread::Builder::new();
                    thread.spawn_scoped(scope, || self.read_from(&queue)).ok()
                })
                .collect();
            let own = self.read_from(&queue);
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|panic| panic::resume_unwind(panic))
            };
            others.into_iter().map(join).fold(own, Result::and)
        })
    }

    /// Reads one part after the other until there is none left, or one fails.
    fn read_from(
        &self,
        queue: &Mutex<vec::IntoIter<ReadRequest<'_>>>,
    ) -> Result<(), CheckpointError> {
        let mut scratch = Vec::new();
        loop {
            let next = queue.lock().next();
            let Some(part) = next else { return Ok(()) };
            if let Err(error) = self.read_part(part, &mut scratch) {
                // The other threads need not go on either.
                queue.lock().by_ref().for_each(drop);
                return Err(error);
            }
        }
    }

    fn read_part(
        &self,
        part: ReadRequest<'_>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), CheckpointError> {
        let ReadRequest {
            tensor,
            role,
            slice,
            out,
        } = part;
        let record = self.manifest.tensors.get(tensor);
        let Some((record, pieces)) = record.and_then(|r| Some((r, r.roles.get(&role)?))) else {
            return Err(CheckpointError::NoSuchTensor {
                location: self.location(),
                tensor: tensor.to_owned(),
                role,
            });
        };
        if record.shape != slice.global_shape {
            return Err(CheckpointError::Shape {
                location: self.location(),
                tensor: tensor.to_owned(),
                expected: slice.global_shape,
                found: record.shape.clone(),
            });
        }
        let mut filled = 0;
        for chunk in chunks_of(record, pieces, self.manifest.chunk_bytes, &slice) {
            let (piece, index) = (chunk.piece, chunk.index);
            let length = self.chunk_length(piece, index);
            if let [run] = chunk.runs.as_slice()
                && run.len * ELEMENT_BYTES == length
            {
                // All of the chunk is wanted in one place, so it needs no other.
                let target = &mut out[run.target..run.target + run.len];
                self.read_chunk(
                    tensor,
                    &role,
                    piece,
                    index,
                    bytemuck::cast_slice_mut(target),
                )?;
                filled += run.len;
                continue;
            }
            scratch.resize(length, 0);
            self.read_chunk(tensor, &role, piece, index, scratch)?;
            for run in &chunk.runs {
                let from = run.source * ELEMENT_BYTES..(run.source + run.len) * ELEMENT_BYTES;
                let target = &mut out[run.target..run.target + run.len];
                bytemuck::cast_slice_mut(target).copy_from_slice(&scratch[from]);
                filled += run.len;
            }
        }
        if filled != out.len() {
            return Err(self.damaged(format!(
                "the pieces of {role} of tensor {tensor:?} hold {filled} of {} elements of a slice",
                out.len()
            )));
        }
        Ok(())
    }

    /// Bytes of one chunk.
    pub(crate) fn chunk_length(&self, piece: &PieceRecord, index: usize) -> usize {
        let chunk_bytes = self.manifest.chunk_bytes;
        let piece_bytes = ((piece.flat[1] - piece.flat[0]) * ELEMENT_BYTES) as u64;
        chunk_bytes.min(piece_bytes - index as u64 * chunk_bytes) as usize
    }

    /// Fills `bytes` with one chunk, and holds it against its hash.
    pub(crate) fn read_chunk(
        &self,
        tensor: &str,
        role: &Role,
        piece: &PieceRecord,
        index: usize,
        bytes: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let begin = piece.begin + index as u64 * self.manifest.chunk_bytes;
        self.file(&piece.file)?.read_at(begin, bytes)?;
        if piece.chunks.get(index) != Some(&Digest::of(bytes)) {
            return Err(CheckpointError::Corrupt {
                location: self.locate(&piece.file),
                tensor: tensor.to_owned(),
                role: role.clone(),
                begin,
                end: begin + bytes.len() as u64,
            });
        }
        Ok(())
    }

    /// The open file `name`.
    pub(crate) fn file(&self, name: &str) -> Result<Arc<dyn ReadAt>, StoreError> {
        if let Some(file) = self.files.lock().get(name) {
            return Ok(file.clone());
        }
        let file: Arc<dyn ReadAt> = self.store.open(&join(&self.folder, name))?.into();
        self.files.lock().insert(name.to_owned(), file.clone());
        Ok(file)
    }

    /// The full name of one of the checkpoint's files, for messages.
    pub(crate) fn locate(&self, file: &str) -> String {
        self.store.locate(&join(&self.folder, file))
    }

    fn check_sizes(&self) -> Result<(), CheckpointError> {
        let files = &self.manifest.files;
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        for (file, size) in files.iter().zip(self.store.sizes(&self.folder, &names)?) {
            match size {
                Some(bytes) if bytes == file.bytes => {}
                Some(found) => {
                    return Err(CheckpointError::FileSize {
                        location: self.locate(&file.name),
                        expected: file.bytes,
                        found,
                        tensors: self.tensors_in(&file.name),
                    });
                }
                None => {
                    return Err(CheckpointError::FileMissing {
                        location: self.locate(&file.name),
                        tensors: self.tensors_in(&file.name),
                    });
                }
            }
        }
        Ok(())
    }

    /// Some of the tensors in a file, for messages.
    fn tensors_in(&self, file: &str) -> String {
        const SHOWN: usize = 3;
        let names: BTreeSet<&str> = self
            .manifest
            .pieces()
            .filter(|(_, _, _, piece)| piece.file == file)
            .map(|(name, ..)| name.as_str())
            .collect();
        let shown: Vec<&str> = names.iter().take(SHOWN).copied().collect();
        match names.len().saturating_sub(SHOWN) {
            0 => shown.join(", "),
            more => format!("{} and parts of {more} more tensors", shown.join(", ")),
        }
    }

    fn damaged(&self, problem: String) -> CheckpointError {
        CheckpointError::Damaged {
            location: self.location(),
            problem,
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reader").field(&self.location()).finish()
    }
}

/// The commit record of a folder.
pub(crate) fn read_commit(
    store: &dyn Store,
    folder: &str,
) -> Result<CommitRecord, CheckpointError> {
    let path = join(folder, COMMIT_FILE);
    match store.read_limited(&path, MAX_COMMIT_BYTES) {
        Err(error) if error.is_not_found() => Err(CheckpointError::NotCommitted {
            location: store.locate(folder),
        }),
        result => CommitRecord::parse(&result?, &store.locate(&path)),
    }
}

fn read_manifest(store: &dyn Store, folder: &str) -> Result<Manifest, CheckpointError> {
    let commit = read_commit(store, folder)?;
    let path = join(folder, MANIFEST_FILE);
    let location = store.locate(&path);
    let bytes = match store.read(&path) {
        Err(error) if error.is_not_found() => {
            return Err(CheckpointError::FileMissing {
                location,
                tensors: "the list of all tensors".to_owned(),
            });
        }
        result => result?,
    };
    if bytes.len() as u64 != commit.manifest.bytes || Digest::of(&bytes) != commit.manifest.blake3 {
        // A newer manifest is said to be newer even if somebody has touched it.
        Manifest::parse(&bytes, &location)?;
        return Err(CheckpointError::Damaged {
            location,
            problem: "it is not what was committed (its hash differs)".to_owned(),
        });
    }
    let manifest = Manifest::parse(&bytes, &location)?;
    if commit.global_step != manifest.state.global_step {
        return Err(CheckpointError::Damaged {
            location: store.locate(&join(folder, COMMIT_FILE)),
            problem: format!(
                "it is of step {}, and its manifest of step {}",
                commit.global_step, manifest.state.global_step
            ),
        });
    }
    Ok(manifest)
}
