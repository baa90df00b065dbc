//! Process groups: how ranks meet, and the collectives that they do together.
//!
//! [`World::connect`] brings all ranks of a run together; [`World::new_group`] makes a [`ProcessGroup`] of some of them,
//! over shared memory where they share a host and over TCP where they do not. What is being communicated is not this
//! crate's business: it moves and reduces the elements of tensors. Ranks are processes as a rule, but a thread will do:
//!
//! ```
//! use std::net::TcpListener;
//! use std::os::fd::IntoRawFd;
//! use std::time::Duration;
//!
//! use tandem_comm::{ReduceOp, RunSecret, Transport, World, WorldConfig};
//! use tandem_tensor::Tensor;
//!
//! const RANKS: usize = 4;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let config = WorldConfig {
//!     rank: 0,
//!     world_size: RANKS,
//!     local_rank: 0,
//!     local_world_size: RANKS,
//!     master_addr: "127.0.0.1".into(),
//!     master_port: listener.local_addr()?.port(),
//!     master_fd: Some(listener.into_raw_fd()),
//!     secret: RunSecret::random()?,
//!     timeout: Duration::from_secs(300),
//!     network_interface: None,
//!     transport: Transport::Auto,
//! };
//! let run = |rank: usize| -> tandem_comm::Result<i64> {
//!     let world = World::connect(&WorldConfig { rank, local_rank: rank, ..config.clone() })?;
//!     let group = world.new_group("all", &[0, 1, 2, 3])?;
//!     let tensor = Tensor::from_slice(&[rank as i64]);
//!     let mut sum = group.all_reduce(&tensor, ReduceOp::Sum)?;
//!     sum.start(); // overlaps with what is computed here
//!     sum.wait()?;
//!     Ok(tensor.get(0).int64_value())
//! };
//! let sums: Vec<_> = std::thread::scope(|scope| {
//!     let ranks: Vec<_> = (0..RANKS).map(|rank| scope.spawn(move || run(rank))).collect();
//!     ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
//! });
//! for sum in sums {
//!     assert_eq!(sum?, 0 + 1 + 2 + 3);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here waits for ever. A wait for a peer ends with its answer, with its death (noticed within two seconds), with
//! any rank's abort, or with the timeout, and the [`CommError`] names peer, collective, group, sequence number and step.
//!
//! Nobody takes part who does not belong: both ends of every connection prove that they know the run's [`RunSecret`] before
//! anything else is read. docs/security.md says what that protects and what it does not.
//!
//! # Inside
//!
//! Imports go one way: `collective` and `error`, the vocabulary; `meet`, how ranks find each other; `group`, what is the same
//! for every transport; `transport`, which moves the data; `upload`, which feeds a device; `world`, which puts groups together; `testing`. Each knows those
//! before it and none after it.

mod collective;
mod error;
mod group;
mod meet;
#[cfg(not(feature = "nccl"))]
mod no_upload;
#[cfg(feature = "testing")]
pub mod testing;
mod transport;
#[cfg(feature = "nccl")]
mod upload;
mod world;

pub use collective::{Collective, ReduceOp, Site};
pub use error::{CommError, Result};
pub use group::host_values::{all_gather_bytes, all_gather_numbers, broadcast_bytes};
pub use group::observe::{GroupTotals, Observer, OperationEvent, Totals};
pub use group::process_group::ProcessGroup;
pub use group::single::SingleGroup;
pub use group::work::Work;
pub use meet::config::{Transport, WorldConfig};
pub use meet::secret::{RunSecret, SecretError};
#[cfg(not(feature = "nccl"))]
pub use no_upload::{Upload, Uploads};
#[cfg(feature = "nccl")]
pub use upload::{Upload, Uploads};
pub use world::World;
