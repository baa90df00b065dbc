//! Tensors to and from files, by slices: Hugging Face models and sharded checkpoints.
//!
//! Everything here works on plain `&[f32]` and bytes, and knows which part of a tensor is meant from a
//! [`ShardSlice`](tandem_mesh::ShardSlice). It knows no strategy, no process group and no tensor library: whatever one
//! strategy writes, any other can read.
//!
//! # Models
//! [`HfWeights`] reads the weights of a Hugging Face model, and [`HfWriter`] writes such a model.
//!
//! # Checkpoints
//! Saving is a walk through four calls, of which the caller makes the first and the last two on rank 0:
//!
//! 1. [`RunDir::begin`] names the checkpoint; the caller tells all ranks.
//! 2. [`write_shard`] on every rank, or a [`BackgroundWriter`], writes what the rank owns and returns a [`ShardReport`].
//! 3. [`commit`] of all gathered reports checks them and makes the checkpoint exist.
//! 4. [`RunDir::register`] lists it and deletes what retention no longer wants.
//!
//! Loading is [`RunDir::latest`], [`RunDir::reader`], [`differences`] and [`Reader::read_many`] on every rank.
//! `docs/checkpoint-format.md` describes the files, and `examples/read_checkpoint.rs` reads those of a run.
//!
//! ```
//! use std::sync::Arc;
//! use tandem_checkpoint::{Piece, Role, RunDir, TensorSpec, TrainState, commit, store::LocalStore, write_shard};
//! use tandem_mesh::ShardSlice;
//!
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let store = Arc::new(LocalStore::new(folder));
//! let mut run = RunDir::open(store.clone(), Default::default())?;
//!
//! // Two ranks, each with two rows of one tensor.
//! let shape = [4, 3];
//! let data = [[1.0; 6], [2.0; 6]];
//! let new = run.begin();
//! let mut reports = Vec::new();
//! for rank in 0..2 {
//!     let slice = ShardSlice::narrow(&shape, 0, 2 * rank..2 * rank + 2);
//!     let piece = Piece { tensor: "w", role: Role::Param, slice, data: &data[rank] };
//!     reports.push(write_shard(store.as_ref(), &new.folder, rank, &[piece])?);
//! }
//! let spec = TensorSpec { name: "w".into(), shape: shape.to_vec(), roles: vec![Role::Param] };
//! let state = TrainState { global_step: 7, ..TrainState::default() };
//! commit(store.as_ref(), &new, &[spec], reports, state)?;
//! run.register(&new.folder)?;
//!
//! // Any mesh may read it: here the second column, of which each rank wrote a half.
//! let newest = run.latest().expect("a checkpoint");
//! let column = ShardSlice::narrow(&shape, 1, 1..2);
//! let mut out = [0.0; 4];
//! run.reader(&newest.name)?.read("w", &Role::Param, &column, &mut out)?;
//! assert_eq!((newest.global_step, out), (7, [1.0, 1.0, 2.0, 2.0]));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod background;
mod commit;
mod conflict;
mod coverage;
mod digest;
mod element;
mod error;
mod export;
mod header;
mod hf;
mod inspect;
mod manifest;
mod names;
mod piece;
mod read_plan;
mod reader;
mod run_dir;
mod shard;
pub mod store;
mod train_state;

pub use background::{BackgroundWriter, Copying, Snapshot};
pub use commit::{NewCheckpoint, TensorSpec, commit};
pub use conflict::{Difference, Differences, differences};
pub use coverage::{CoverageError, CoverageProblem};
pub use digest::Digest;
pub use element::FloatKind;
pub use error::CheckpointError;
pub use export::{DEFAULT_SHARD_BYTES, ModelFile, export, with_dtype};
pub use header::{Entry, HeaderError};
pub use hf::{HfWeights, HfWriter, TensorFile, TensorProblem, WeightsError};
pub use hf::{NamedTensor, SafetensorsWriter, write_safetensors};
pub use inspect::{Contents, FileCheck};
pub use manifest::{
    CHUNK_BYTES, CommitRecord, FORMAT_VERSION, FileRecord, Manifest, PieceRecord, TensorRecord,
};
pub use names::{CHECKPOINT_PREFIX, CheckpointName, FileName, NameError};
pub use piece::{Piece, Role};
pub use reader::{ReadRequest, Reader};
pub use run_dir::{CheckpointEntry, Registered, Retention, RunDir, Score, ScoreOrder, model_files};
pub use safetensors::Dtype;
pub use shard::{ShardReport, WrittenPiece, write_shard};
pub use store::{Store, local_path, open_store};
pub use train_state::TrainState;

// Elements are copied between files and memory without swapping bytes; safetensors is little-endian.
#[cfg(target_endian = "big")]
compile_error!("tandem-checkpoint supports little-endian machines only");
