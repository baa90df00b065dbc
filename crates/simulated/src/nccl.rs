//! The stand-in for `libnccl.so.2`.
//!
//! Imports go one way: `link` (sockets between the members), `exchange` (what a collective moves and reduces), `communicator`,
//! `call` (what is asked for, and groups of it), `interface` (the C functions).

mod call;
mod communicator;
mod exchange;
mod interface;
mod link;
