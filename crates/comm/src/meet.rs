//! How the ranks of a run meet: who listens where, the store through which they find each other, and the news of who left.

#[cfg(feature = "nccl")]
pub(crate) mod board;
pub(crate) mod config;
pub(crate) mod door;
pub(crate) mod handshake;
pub(crate) mod health;
pub(crate) mod membership;
pub(crate) mod point;
pub(crate) mod rendezvous;
pub(crate) mod secret;
pub(crate) mod store;
