//! Starting workers and looking after them: the local controller, the socket it talks to workers over, and the
//! detection of every other launcher.
//!
//! A worker is any process started with torchrun's variables ([`env`](mod@env)) and, optionally, a control socket
//! ([`protocol`], [`client`]). The built-in [`controller`] is one launcher among several: torchrun, Slurm, Open MPI
//! and Ray start the same binaries.
//!
//! This crate knows processes, files and sockets. It knows nothing of models, tensors or collectives: a worker's
//! work is whatever its program does.

pub mod client;
pub mod controller;
pub mod delegate;
pub mod env;
pub mod exit_code;
pub mod experiment;
pub mod output;
pub mod parent;
mod process_table;
pub mod protocol;
mod small_file;
pub mod stop_signals;
