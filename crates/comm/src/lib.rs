//! Process groups: how ranks meet, and the collectives that they do together.
//!
//! [`World::connect`] brings all ranks of a run together; [`World::new_group`] makes a [`ProcessGroup`] of some of them,
//! over shared memory where they share a host and over TCP where they do not. What is being communicated is not this
//! crate's business: it moves and reduces the elements of tensors.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use tandem_comm::{ReduceOp, Transport, World, WorldConfig};
//! # use tandem_tensor::{Device, Kind, Tensor};
//! # fn main() -> Result<(), tandem_comm::CommError> {
//! let world = World::connect(&WorldConfig {
//!     rank: 0,
//!     world_size: 2,
//!     local_rank: 0,
//!     local_world_size: 2,
//!     master_addr: "127.0.0.1".into(),
//!     master_port: 29500,
//!     master_fd: None,
//!     timeout: Duration::from_secs(300),
//!     network_interface: None,
//!     transport: Transport::Auto,
//! })?;
//! let group = world.new_group("dp", &[0, 1])?;
//! let gradient = Tensor::zeros([1024], (Kind::Float, Device::Cpu));
//! let mut sum = group.all_reduce(&gradient, ReduceOp::Sum)?;
//! sum.start(); // overlaps with what is computed here
//! sum.wait()?;
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here waits for ever. A wait for a peer ends with its answer, with its death (noticed within two seconds), with
//! any rank's abort, or with the timeout, and the [`CommError`] names peer, collective, group, sequence number and step.

mod collective;
mod context;
mod error;
mod faulty;
mod group;
mod health;
mod host_values;
mod membership;
#[cfg(feature = "nccl")]
mod nccl;
mod observe;
mod operation;
mod queue;
mod reduce;
mod rendezvous;
mod shm;
mod single;
mod store;
mod tcp;
mod work;
mod world;

pub use collective::{Collective, ReduceOp, Site};
pub use error::{CommError, Result};
pub use faulty::{Fault, FaultyGroup};
pub use group::ProcessGroup;
pub use host_values::{all_gather_bytes, all_gather_numbers, broadcast_bytes};
pub use observe::{Event, GroupTotals, Observer, Totals};
pub use single::SingleGroup;
pub use work::Work;
pub use world::{Transport, World, WorldConfig};
