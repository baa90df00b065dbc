//! Threads and file descriptors that a run will need, tried before it begins.

use std::thread::available_parallelism;

use tandem_launch::env::WorkerEnv;
use tandem_launch::limits::{Need, check};
use tandem_plan::scale::{FILES_BESIDES, descriptors_asked};

use crate::failure::{Failure, Outcome};

/// Threads of a worker besides those that compute: the control socket's, a group's, the loader's, a save's.
const THREADS_BESIDES: usize = 16;
/// Descriptors that the controller has for a worker: its log, its process, its connection.
const OF_CONTROLLER: u64 = 6;
/// What a thread needs that does nothing.
const SMALL_STACK: usize = 64 << 10;

/// Of all workers, before the controller starts them: limits of a user or a container are on their sum.
pub fn check_all(num_workers: usize) -> Outcome<()> {
    let threads = num_workers * of_worker(num_workers) + num_workers;
    tried(Need {
        threads,
        stack: Some(SMALL_STACK),
        descriptors: FILES_BESIDES + OF_CONTROLLER * num_workers as u64,
    })
}

/// Of this worker.
pub fn check_own(env: &WorkerEnv) -> Outcome<()> {
    tried(Need {
        threads: of_worker(env.local_world_size),
        stack: None,
        descriptors: descriptors_asked(env.world_size),
    })
}

/// Threads of one worker of a host that has so many: libtorch's and our own share the cores.
fn of_worker(local_world_size: usize) -> usize {
    let cores = available_parallelism().map_or(1, usize::from);
    2 * (cores / local_world_size.max(1)).max(1) + THREADS_BESIDES
}

/// Starting again cannot help.
fn tried(need: Need) -> Outcome<()> {
    check(need).map_err(|error| Failure::usage(error.to_string()))
}
