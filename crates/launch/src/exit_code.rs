//! The exit codes of workers and of the controller, in one table.
//!
//! | code | name | meaning |
//! |---|---|---|
//! | 0 | [`OK`] | training ended |
//! | 1 | [`FAILURE`] | the run failed; the message says why |
//! | 2 | [`USAGE`] | the command line or configuration is wrong: starting again cannot help, so the controller never does |
//! | 75 | [`STOPPED_AFTER_SAVING`] | asked to stop (preemption, Ctrl-C), finished the step and saved: start again to continue |
//! | 129, 130, 143 | [`for_signal`] | ended by SIGHUP, SIGINT, SIGTERM without saving |
//!
//! A worker killed by a signal has no exit code; shells show it as 128 + the signal's number.

use rustix::process::Signal;

/// Training ended.
pub const OK: i32 = 0;
/// The run failed.
pub const FAILURE: i32 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: i32 = 2;
/// Stopped on request, after saving. 75 is `EX_TEMPFAIL` of sysexits.h ("try again later"), which batch systems can
/// be told to requeue.
pub const STOPPED_AFTER_SAVING: i32 = 75;

/// The exit code of a process that ends because of `signal`: 128 + its number, as shells do.
#[must_use]
pub fn for_signal(signal: Signal) -> i32 {
    128 + signal.as_raw()
}
