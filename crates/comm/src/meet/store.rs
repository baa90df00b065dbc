//! The rendezvous: a small key-value store on rank 0, and the line on which every rank hears of every other's end.
//!
//! Each rank keeps one TCP connection to rank 0 for as long as it lives. Over it go the few values that ranks need to
//! find each other, and the news of who left, failed or aborted. What all members of a group must know of each other is
//! gathered ([`gathering`]): one request of each, and one answer, so that a start takes messages in proportion to the ranks
//! and not to their square. Only who knows the run's secret is listened to
//! ([`Door`](crate::meet::door::Door)), and what a rank may leave in the store is limited ([`quota`]).

mod client;
mod gathering;
mod parts;
mod quota;
mod server;
mod traffic;
pub(crate) mod wire;

#[cfg(feature = "nccl")]
pub(crate) use client::Question;
pub(crate) use client::{Client, Refusal};
pub(crate) use server::Server;
#[cfg(any(test, feature = "testing"))]
pub use traffic::Traffic;
