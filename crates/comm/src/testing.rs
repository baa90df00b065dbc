//! What tests of this crate, and of crates above it, are made of. Only with the feature `testing`; no program has it.

mod faulty;
pub mod frames;
mod ranks;

pub use faulty::{Fault, FaultyGroup};
pub use ranks::{Setup, everyone, free_port, lines};
