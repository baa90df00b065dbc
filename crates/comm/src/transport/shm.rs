//! Collectives between the ranks of one host, through one memory segment per group.
//!
//! Every rank owns two slots of the segment. An *exchange* is: write into the own slot, meet ([`Meeting`](meeting::Meeting)),
//! read the others' slots. Exchanges alternate between the two slots, which makes one meeting per exchange enough: whoever
//! writes a slot again has met everybody in the exchange between, and they came there after they had read it.
//!
//! A tensor that does not fit into a slot is cut into chunks, one exchange each. The chunks are small enough to stay in
//! the caches, so what crosses the segment does not go through main memory.

mod collectives;
mod join;
mod meeting;
mod negotiate;
mod neighbour;
mod segment;
mod shared_memory;

pub(crate) use join::DIFFERENT_HOSTS;
#[cfg(feature = "nccl")]
pub(crate) use negotiate::host_identity;
pub(crate) use shared_memory::SharedMemory;
