//! Stop requests as a flag, and signals that set it.
//!
//! Under the local controller, signals reach the controller and workers get the command `stop`. Under torchrun, Slurm
//! or Kubernetes the signal reaches the worker itself, and [`StopFlag::set_by_signals`] makes it mean the same.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether somebody asked to finish the step, save and exit. Once set it stays set. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks for a stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// From now on the first SIGINT, SIGTERM or SIGHUP of this process sets the flag, and a second one ends the process at
    /// once, with exit code 130, 143 or 129. A SIGHUP that is ignored (nohup) stays ignored.
    ///
    /// # Errors
    /// What the system said when a handler could not be installed.
    pub fn set_by_signals(&self) -> io::Result<()> {
        let hang_up = (!hang_up_is_ignored()).then_some(SIGHUP);
        for signal in [SIGINT, SIGTERM].into_iter().chain(hang_up) {
            // The order matters: the exit looks at the flag before the same signal sets it.
            signal_hook::flag::register_conditional_shutdown(
                signal,
                128 + signal,
                Arc::clone(&self.0),
            )?;
            signal_hook::flag::register(signal, Arc::clone(&self.0))?;
        }
        Ok(())
    }

    /// From now on SIGHUP sets the flag, unless it is ignored: for a worker whose controller takes care of the other signals,
    /// because a terminal that is closed may hang up on both, and in any order.
    ///
    /// # Errors
    /// What the system said when the handler could not be installed.
    pub fn set_by_hang_up(&self) -> io::Result<()> {
        if !hang_up_is_ignored() {
            signal_hook::flag::register(SIGHUP, Arc::clone(&self.0))?;
        }
        Ok(())
    }
}

/// From now on a write beyond the limit on the size of files (`ulimit -f`) is an error of that write, which names the file, and
/// not the end of the process.
///
/// # Errors
/// What the system said when the handler could not be installed.
pub fn too_large_a_file_is_an_error() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(|_| ())
}

/// Asks this process to stop, as SIGTERM from outside does.
pub fn stop_this_process() {
    // The only signal that could not be sent is one that does not exist.
    let _ = signal_hook::low_level::raise(SIGTERM);
}

/// Whether whoever started this process wants it to outlive its terminal, as nohup does. Children inherit it.
pub fn hang_up_is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| is_ignored(&status, SIGHUP))
}

/// What `/proc/PID/status` says of a signal: the mask `SigIgn` in hexadecimal digits, from signal 1 on.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_known_by_its_bit() {
        let status = "Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(is_ignored(status, SIGHUP) && is_ignored(status, 13));
        assert!(!is_ignored(status, SIGINT) && !is_ignored("", SIGHUP));
    }
}
