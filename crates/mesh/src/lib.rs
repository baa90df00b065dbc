//! The device mesh and the arithmetic of shards.
//!
//! Nothing here does I/O, holds a tensor or knows a process group: every function is a pure map from sizes
//! to ranges, so every rank computes the same answer without talking to the others.
//!
//! ```
//! use tandem_mesh::{DeviceMesh, ShardSlice, partition};
//!
//! // Two rows of three ranks. Rank 4 is in the middle of the second.
//! let mesh = DeviceMesh::for_workers(3, 2, 6)?;
//! let coords = mesh.coords(4);
//! assert_eq!((coords.tp_rank, coords.dp_rank), (1, 1));
//! assert_eq!((mesh.tp_group(4), mesh.dp_group(4)), (vec![3, 4, 5], vec![1, 4]));
//!
//! // Of a matrix of 8 x 10 it holds three rows, and updates the second half of their elements.
//! let rows = ShardSlice::narrow(&[8, 10], 0, partition(8, 3, coords.tp_rank));
//! let half = partition(rows.numel(), 2, coords.dp_rank);
//! let own = rows.with_flat(half);
//! assert_eq!((own.offsets[0], own.shape[0], own.flat.clone()), (3, 3, 15..30));
//!
//! // A checkpoint of one rank has all 80. What it needs of them is one run.
//! let copies = own.copies_from(&ShardSlice::whole(&[8, 10]));
//! assert_eq!((copies.len(), copies[0].source, copies[0].len), (1, 45, 15));
//! # Ok::<(), tandem_mesh::MeshError>(())
//! ```

mod device_mesh;
mod partition;
mod shard;

pub use device_mesh::{Coords, DeviceMesh, MeshError};
pub use partition::{partition, partition_aligned};
pub use shard::{Run, ShardSlice};
