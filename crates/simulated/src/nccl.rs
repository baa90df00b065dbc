//! The stand-in for `libnccl.so.2`.
//!
//! Imports go one way: `link` (sockets between the members), `exchange` (what a collective moves and reduces), `communicator`,
//! `interface` (the C functions).

mod communicator;
mod exchange;
mod interface;
mod link;
