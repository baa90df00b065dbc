//! Stop requests as a flag, and signals that set it.
//!
//! Under the local controller, signals reach the controller and workers get the command `stop`. Under torchrun, Slurm
//! or Kubernetes the signal reaches the worker itself, and [`StopFlag::set_by_signals`] makes it mean the same.

use signal_hook::consts::{SIGINT, SIGTERM};
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

    /// From now on the first SIGINT or SIGTERM of this process sets the flag, and a second one ends the process at
    /// once, with exit code 130 or 143.
    ///
    /// # Errors
    /// What the system said when a handler could not be installed.
    pub fn set_by_signals(&self) -> io::Result<()> {
        for signal in [SIGINT, SIGTERM] {
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
}
