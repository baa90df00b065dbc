//! What a run does, for whoever looks at its folder from outside.

use super::RunState;
use super::run_lock::{LockOwner, owner_of};
use super::run_record::{self, RunRecord};
use std::fmt;
use std::path::Path;

/// The state of a run, and whether somebody still looks after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStatus {
    /// What `run.json` says.
    pub state: RunState,
    /// Why, where it says so.
    pub reason: Option<String>,
    /// The last step that a worker has told of.
    pub last_step: Option<u64>,
    /// `run.json` says that the run goes on, but its controller is gone: it was killed, or the machine went down.
    pub is_abandoned: bool,
    owner: Option<LockOwner>,
}

impl RunStatus {
    /// Of the run in `run_dir`; none when no controller has written there, or not what can be read.
    #[must_use]
    pub fn of(run_dir: &Path) -> Option<Self> {
        let (state, reason, last_step) = run_record::summary(&RunRecord::path_in(run_dir))?;
        let owner = owner_of(run_dir);
        // An owner that leaves in good order takes its name away. One of another host cannot be seen from here.
        let may_live = owner.as_ref().is_some_and(LockOwner::may_be_alive);
        Some(Self {
            state,
            reason,
            last_step,
            is_abandoned: !state.is_final() && !may_live,
            owner,
        })
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = serde_json::to_value(self.state).unwrap_or_default();
        let word = word.as_str().unwrap_or_default();
        if self.is_abandoned {
            write!(f, "LOST: it was {word}, but its controller is gone")?;
        } else {
            write!(f, "{word}")?;
        }
        match &self.owner {
            Some(owner) if !self.state.is_final() => write!(f, " ({owner})")?,
            _ => {}
        }
        if let Some(step) = self.last_step {
            write!(f, ", step {step}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {}", reason.lines().next().unwrap_or_default()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_whose_controller_is_gone_is_not_running() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(RunStatus::of(folder.path()), None);
        let record = |state: &str| {
            let text = serde_json::json!({"state": state, "reason": null, "last_step": 7});
            std::fs::write(folder.path().join("run.json"), text.to_string()).unwrap();
        };
        record("RUNNING");
        let status = RunStatus::of(folder.path()).unwrap();
        assert!(status.is_abandoned, "{status}");
        assert_eq!(
            status.to_string(),
            "LOST: it was RUNNING, but its controller is gone, step 7"
        );
        let owner = serde_json::to_string(&LockOwner::this_process()).unwrap();
        std::fs::write(folder.path().join(".lock"), &owner).unwrap();
        assert!(!RunStatus::of(folder.path()).unwrap().is_abandoned);
        let dead = owner.replace("\"start_ticks\":", "\"start_ticks\":9");
        std::fs::write(folder.path().join(".lock"), dead).unwrap();
        assert!(RunStatus::of(folder.path()).unwrap().is_abandoned);
        record("FINISHED");
        let status = RunStatus::of(folder.path()).unwrap();
        assert_eq!(status.to_string(), "FINISHED, step 7");
    }
}
