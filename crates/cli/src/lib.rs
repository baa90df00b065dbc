//! The command line: flags to validated requests, one process to its role, errors to exit codes.

mod args;
mod bench_step;
mod case_files;
mod failure;
mod local;
mod replay;
mod replay_case;
mod replay_check;
mod request;
mod session;
pub mod tandem;
mod weights;
mod worker;
