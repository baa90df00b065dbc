//! The stand-in for the driver, `libcuda.so.1`.
//!
//! Imports go one way: `order`, `memory`, `machine` (streams and events), `interface` (the C functions).

mod interface;
mod machine;
mod memory;
mod order;

pub(crate) use machine::{Refused, Touch, enqueue_collective};
