//! `train_fsdp` and `train_deepspeed` from outside, on the demo model.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod bad_input;
mod browser;
mod chat;
mod check_flags;
mod cluster;
mod crash;
mod damage;
mod deepspeed_file;
mod demo;
mod evaluation;
mod experts;
mod export;
mod fine_tune;
mod full_disk;
mod gpu;
mod hang_up;
// The fuzz tests use more of it.
#[allow(dead_code)]
#[path = "../fuzz/harness.rs"]
mod harness;
mod hosts;
mod libtorch;
mod log;
mod lora;
mod lost_folder;
mod many_ranks;
// That crate's tests use more of it.
#[allow(dead_code)]
#[path = "../../../checkpoint/tests/checkpoint/moto.rs"]
mod moto;
mod mutants;
mod names;
mod network;
mod object_storage;
mod other_launchers;
mod output;
mod packing;
mod plan;
mod profile;
mod programs;
mod report;
mod reshard;
mod resume;
mod resume_from;
mod saved;
mod spread_experts;
mod tiny;
mod torchrun;
mod train;
mod workers;
