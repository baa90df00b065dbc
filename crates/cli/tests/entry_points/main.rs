//! `train_fsdp` and `train_deepspeed` from outside, on the demo model.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod bad_input;
mod demo;
mod reshard;
mod resume;
mod saved;
mod tiny;
mod train;
