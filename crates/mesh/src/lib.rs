//! The device mesh and the arithmetic of shards.
//!
//! Nothing here does I/O, holds a tensor or knows a process group: every function is a pure map from sizes
//! to ranges, so every rank computes the same answer without talking to the others.

mod device_mesh;
mod partition;
mod shard;

pub use device_mesh::{Coords, DeviceMesh, MeshError};
pub use partition::{partition, partition_aligned};
pub use shard::{Placement, Run, ShardSlice};
