//! The rendezvous: a small key-value store on rank 0, and the line on which every rank hears of every other's end.
//!
//! Each rank keeps one TCP connection to rank 0 for as long as it lives. Over it go the few values that ranks need to
//! find each other, and the news of who left, failed or aborted.

mod client;
mod server;
mod wire;

pub(crate) use client::{Client, Refusal};
pub(crate) use server::Server;
