//! What tests of this crate, and of crates above it, are made of. Only with the feature `testing`; no program has it.

#[cfg(feature = "nccl")]
mod detour;
mod faulty;
pub mod frames;
mod over;
mod ranks;
mod signs;
#[cfg(feature = "nccl")]
mod simulated;

#[cfg(feature = "nccl")]
pub use detour::touch_device_memory;
pub use faulty::{Fault, FaultyGroup};
pub use over::Over;
pub use ranks::{Setup, everyone, free_port, lines};
pub use signs::{await_sign, leave_sign, meet};

pub use crate::meet::store::Traffic as StoreTraffic;
pub use crate::transport::ring_bytes;

/// What was said over the store of `world` so far, on rank 0.
pub fn store_traffic(world: &crate::World) -> Option<StoreTraffic> {
    world.store_traffic()
}
