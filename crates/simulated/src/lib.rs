//! A GPU that is none: stand-ins for `libcuda.so.1` and `libnccl.so.2`, for tests on machines without one.
//!
//! One shared library has the functions of both that Tandem calls, and no others; tests load it under both names
//! (`tandem_comm::testing` makes the links). It knows nothing of kernels, so libtorch cannot compute with it: what it runs is
//! what is ours, the order in which copies and collectives are put on streams, and what happens when one of them fails.
//!
//! It is stricter than a device, so that a mistake shows each time and not now and then:
//!
//! - A stream is a queue with a thread of its own, which dawdles at random. What is not waited for is not done.
//! - Device memory is an address that the host cannot touch (`mmap` without permissions); its bytes lie elsewhere. New memory is
//!   all NaN.
//! - Pinned host memory cannot be touched either from the moment a copy of it is enqueued until the host has waited for it.
//! - The order of accesses is proven, not tried: every access to device memory must come, by streams, events and waits of the
//!   host, after every earlier one that it conflicts with (`order.rs`), whatever the threads happen to do.
//! - What real libraries leave undefined (a handle that is gone, memory that is freed while in use, a communicator destroyed
//!   under its operations) ends the process with a sentence.
//!
//! Failures come on demand: see [`FAULTS`]. Communicators connect processes of one host through sockets without names in any file
//! system.

mod cuda;
mod fault;
mod nccl;

/// The environment variable that asks for failures: `function:number:what`, several with commas between them, in this process.
/// `number` counts the calls of the function from 1. What can happen:
///
/// - `error=N`: the call returns this status and does nothing.
/// - `broken=N`: as `error`, and every later call of the driver returns it too, as after an illegal access.
/// - `stuck`: the collective is enqueued and never ends, unless its communicator is aborted.
/// - `late`: the collective is done on this rank half a second after it could be.
/// - `blocked`: the call does not return, unless its communicator is aborted.
/// - `async=N`: `stuck`, and `ncclCommGetAsyncError` says so with this status.
/// - `die`: the process is killed.
///
/// `lost:1:async=6` stands for no call: the first collective whose peer is gone says so in the background.
pub const FAULTS: &str = "TANDEM_SIMULATED_FAULTS";

/// The environment variable with the number of devices; 8 where it is not set.
pub const DEVICES: &str = "TANDEM_SIMULATED_DEVICES";

/// The environment variable with the seed of the streams' delays.
pub const SEED: &str = "TANDEM_SIMULATED_SEED";

/// What nobody may do. The real libraries promise nothing about it, so a test must not get past it.
fn forbidden(what: &str) -> ! {
    use std::io::Write;
    let _written = writeln!(std::io::stderr(), "simulated GPU: {what}");
    std::process::abort()
}
