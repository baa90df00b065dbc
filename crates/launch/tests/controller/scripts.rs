//! Short ways to write the scripts of fake workers.

use crate::script::{Fault, FaultKind, Script};

impl Script {
    /// Some steps without trouble.
    pub fn steps(steps: u64) -> Self {
        Self {
            steps,
            step_ms: 5,
            checkpoint_every: 0,
            fault: None,
            peers_notice: false,
            deaf: false,
            never_trains: false,
            stubborn: false,
            with_child: false,
            outlives_parent: false,
        }
    }

    /// More steps than any test waits for.
    pub fn endless() -> Self {
        Self::steps(u64::MAX)
    }

    pub fn with_fault(self, rank: usize, step: u64, attempts: u32, kind: FaultKind) -> Self {
        Self {
            fault: Some(Fault {
                rank,
                step,
                later_each_attempt: 0,
                attempts,
                kind,
            }),
            ..self
        }
    }
}
