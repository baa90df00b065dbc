//! The command line: flags to validated requests, one process to its role, errors to exit codes.

mod args;
mod bench_step;
mod case_files;
mod checkpoint_args;
mod checkpoint_location;
mod cluster_args;
mod display;
mod export;
mod failure;
mod inspect;
mod local;
mod prepare;
mod replay;
mod replay_case;
mod replay_check;
mod reporter;
mod request;
mod session;
mod storage;
mod summary;
pub mod tandem;
pub mod train;
mod weights;
mod worker;
