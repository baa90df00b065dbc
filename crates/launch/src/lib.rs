//! Starting workers and looking after them: the local controller, the socket it talks to workers over, and the
//! detection of every other launcher.
//!
//! A worker is any process started with torchrun's variables ([`env`](mod@env)) and, optionally, a control socket
//! ([`protocol`], [`client`]). The built-in [`controller`] is one launcher among several: torchrun, Slurm, Open MPI
//! and Ray start the same binaries.
//!
//! ```
//! use tandem_launch::env::{Launcher, WorkerEnv};
//!
//! // As srun sets them for the sixth of eight tasks, on the second of two nodes.
//! let variables = [
//!     ("SLURM_JOB_ID", "4242"), ("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "5"), ("SLURM_NTASKS", "8"),
//!     ("SLURM_LOCALID", "1"), ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"), ("SLURM_STEP_NODELIST", "n[07-08]"),
//! ];
//! let lookup = |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| value.to_string());
//! let worker = WorkerEnv::detect(&lookup)?.expect("a launcher has started it");
//! assert_eq!((worker.source, worker.rank, worker.world_size), (Launcher::Slurm, 5, 8));
//! assert_eq!((worker.node_rank, worker.master_addr.as_str()), (1, "n07"));
//!
//! // A process without such variables is the one that a person has started.
//! assert_eq!(WorkerEnv::detect(&|_| None)?, None);
//! # Ok::<_, tandem_launch::env::EnvError>(())
//! ```
//!
//! This crate knows processes, files and sockets. It knows nothing of models, tensors or collectives: a worker's
//! work is whatever its program does.

pub mod client;
pub mod controller;
pub mod delegate;
pub mod env;
pub mod exit_code;
pub mod experiment;
pub mod limits;
pub mod output;
pub mod parent;
mod process_table;
pub mod protocol;
pub mod stop_signals;
